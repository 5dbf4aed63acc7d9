"""The port mapper's setting, and what it makes of the kernel's route."""

from __future__ import annotations

import pytest

from meshnode.core.portmap_values import Protocol
from meshnode.underlay import gateway, portmap


@pytest.mark.parametrize(
    ("setting", "is_local", "in_container", "count"),
    [("auto", False, False, 3), ("auto", True, False, 0), ("auto", False, True, 0), ("on", True, True, 3)]
    + [("off", False, False, 0), ("upnp", True, True, 1)],
)
def test_who_is_asked(
    setting: str, is_local: bool, in_container: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portmap, "is_in_container", lambda: in_container)
    assert len(portmap.protocols_of(setting, is_local=is_local)) == count
    assert portmap.protocols_of("pmp") == {Protocol.PMP}


def test_the_gateway_is_private_or_none() -> None:
    """Whatever this machine has."""
    found = gateway.default_gateway()
    assert found is None or (found.ip.is_private and found.interface)
