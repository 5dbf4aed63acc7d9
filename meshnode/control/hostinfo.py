"""What this machine is, as Hostinfo says it: read once at start.

Only facts, and only those the protocol has a use for; whatever cannot be read is left out. NetInfo
is not here: it changes, and `announce` adds it.
Source: docs/protocol/control.md 8.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

PROTOCOL_RELEASE: Final = "1.94.0"
"""The Tailscale release whose capability version we claim; servers parse the leading x.y.z."""
_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_CONTAINER_MARKS: Final = ("/.dockerenv", "/run/.containerenv")


def gather(
    hostname: str,
    *,
    version: str,
    log_id: str = "",
    tags: Sequence[str] = (),
    routes: Sequence[str] = (),
    app: str = "meshnode",
) -> dict[str, Any]:
    """The Hostinfo of this machine. `hostname` is what we ask to be called, `log_id` 64 hex digits or ''."""
    system = os.uname()
    info: dict[str, Any] = {
        "IPNVersion": f"{PROTOCOL_RELEASE}-meshnode{version}",
        "OS": system.sysname.lower(),
        "OSVersion": system.release,
        "Hostname": hostname.partition(".")[0],
        "App": app,
        "Machine": system.machine,
        "Desktop": False,
        "NoLogsNoSupport": True,
        "Userspace": True,
    }
    if system.machine in _ARCHITECTURES:
        info["GoArch"] = _ARCHITECTURES[system.machine]
    if log_id:
        info["BackendLogID"] = log_id
    if any(os.path.exists(mark) for mark in _CONTAINER_MARKS):
        info["Container"] = True
    info |= _distribution()
    if tags:
        info["RequestTags"] = sorted(set(tags))
    if routes:
        info["RoutableIPs"] = sorted(set(routes))
    return info


def _distribution() -> dict[str, str]:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            text = file.read(16_384)
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name] = value.strip().strip("\"'")
    known = {"Distro": "ID", "DistroVersion": "VERSION_ID", "DistroCodeName": "VERSION_CODENAME"}
    return {ours: fields[theirs] for ours, theirs in known.items() if fields.get(theirs)}
