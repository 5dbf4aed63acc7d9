"""Which of the kernel's UDP offloads are used: our settings, and what control asks of this node.

Either may take one away, neither gives it back. Source: docs/protocol/dataplane.md 2.3; the attributes are
those of the node's own CapMap.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from meshnode.engine.engine import GSO_AUTO, GSO_NEVER_EQUAL, GSO_OFF

NO_GSO: Final = "disable-udp-gso"
NO_GRO: Final = "disable-udp-gro"
NEVER_EQUAL: Final = "never-gso-equal-tail"
_MODES: Final = {"auto": GSO_AUTO, "off": GSO_OFF, "never-equal-tail": GSO_NEVER_EQUAL}


def offloads(udp_gso: str, udp_gro: str, attributes: Container[str] = ()) -> tuple[int, bool]:
    """(gso, gro) as `Engine.set_offloads` takes them; attributes: names in the node's own CapMap."""
    gso = _MODES[udp_gso]
    if NO_GSO in attributes:
        gso = GSO_OFF
    elif NEVER_EQUAL in attributes and gso == GSO_AUTO:
        gso = GSO_NEVER_EQUAL
    return gso, udp_gro == "auto" and NO_GRO not in attributes
