"""UDP offloads: settings and control's attributes, the stricter of the two."""

from __future__ import annotations

import pytest

from meshnode.engine.engine import GSO_AUTO, GSO_NEVER_EQUAL, GSO_OFF
from meshnode.node.offloads import offloads


@pytest.mark.parametrize(
    ("udp_gso", "udp_gro", "attributes", "want"),
    [
        ("auto", "auto", (), (GSO_AUTO, True)),
        ("off", "auto", (), (GSO_OFF, True)),
        ("auto", "off", (), (GSO_AUTO, False)),
        ("never-equal-tail", "auto", (), (GSO_NEVER_EQUAL, True)),
        ("auto", "auto", ("disable-udp-gso",), (GSO_OFF, True)),
        ("auto", "auto", ("disable-udp-gro", "funnel"), (GSO_AUTO, False)),
        ("auto", "auto", ("never-gso-equal-tail",), (GSO_NEVER_EQUAL, True)),
        ("off", "auto", ("never-gso-equal-tail",), (GSO_OFF, True)),
        ("never-equal-tail", "auto", ("disable-udp-gso", "never-gso-equal-tail"), (GSO_OFF, True)),
    ],
)
def test_the_stricter_wins(udp_gso: str, udp_gro: str, attributes: tuple[str, ...], want: tuple[int, bool]) -> None:
    assert offloads(udp_gso, udp_gro, attributes) == want
