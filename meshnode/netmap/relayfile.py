"""A relay map as people keep it: Tailscale's JSON, or the YAML of Headscale's `derp.paths` → RelayMap.

Names of fields count whatever their case, as both programs read them. Everything is bounded, and what cannot be read is
said with its place.
Source: docs/protocol/paths.md 1.14.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
import yaml

from meshnode.base.addr import RegionId, parse_ip
from meshnode.base.bounds import RELAY_MAP_MAX, RELAY_MAP_NODES_MAX, RELAY_MAP_REGIONS_MAX, RELAY_MAP_YAML_MAX
from meshnode.base.errors import ConfigError
from meshnode.netmap.model import RelayMap, RelayNode, RelayRegion
from meshnode.netmap.tailcfg import WireDerpNode, WireDerpRegion
from meshnode.netmap.translate import region_of

PORT_MAX: Final = 65535
ONE: Final = RegionId(1)
NO_FAMILY: Final = "none"
T = TypeVar("T", bound=msgspec.Struct)


class _Loader(yaml.SafeLoader):
    """Plain values only. In Python, where what is nested too deeply is an error and not the end of the process."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The library's hook: repeated by name, a small file would mean a huge one."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("places that repeat another by its name (*name) are not read")
        return super().compose_node(parent, index)


def parse_relay_map(data: bytes, source: str) -> RelayMap:
    """The map in a file's bytes; source: how messages name the file. ConfigError if it is none."""
    if len(data) > RELAY_MAP_MAX:
        raise ConfigError(f"{source}: more than {RELAY_MAP_MAX} bytes, which is no relay map")
    listed = _lowered(_decode(data, source), source).get("regions")
    if not isinstance(listed, Mapping) or not listed:
        raise ConfigError(f'{source}: no Regions in it; a relay map is {{"Regions": {{"900": …}}}}, in JSON or YAML')
    if len(listed) > RELAY_MAP_REGIONS_MAX:
        raise ConfigError(f"{source}: {len(listed)} regions, at most {RELAY_MAP_REGIONS_MAX} are taken")
    regions = [_region(number, fields, source) for number, fields in listed.items() if fields is not None]
    if not any(region.nodes for region in regions):
        raise ConfigError(f"{source}: its regions name no relay (HostName)")
    return RelayMap({region.id: region for region in regions})


def map_of_one(host: str, port: int) -> RelayMap:
    """The map with this relay alone; host: a name or an address without brackets."""
    literals = {4: "", 6: ""}
    with suppress(ValueError):
        literals = {4: NO_FAMILY, 6: NO_FAMILY} | {parse_ip(host).version: host}
    node = RelayNode(name=host, region=ONE, host=host, port=port, ipv4=literals[4], ipv6=literals[6])
    return RelayMap({ONE: RelayRegion(ONE, host, "", (node,))})


def _decode(data: bytes, source: str) -> Any:
    """JSON by its first brace, else YAML."""
    try:
        if data.lstrip()[:1] == b"{":
            return msgspec.json.decode(data)
        if len(data) > RELAY_MAP_YAML_MAX:
            raise ConfigError(f"{source}: more than {RELAY_MAP_YAML_MAX} bytes of YAML; write it as JSON")
        return yaml.load(data, _Loader)
    except (msgspec.MsgspecError, yaml.YAMLError, RecursionError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{source}: neither JSON nor YAML that can be read: {words[:200]}") from None


def _lowered(value: Any, where: str) -> dict[str, Any]:
    """Its fields, names in lower case."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {_kind(value)} where named fields belong")
    return {str(name).lower(): item for name, item in value.items()}


def _region(number: Any, fields: Any, source: str) -> RelayRegion:
    where = f"{source}: region {str(number)[:20]}"
    if not str(number).isascii() or not str(number).isdigit() or not 0 < int(number) <= PORT_MAX:
        raise ConfigError(f"{where}: the number of a region is 1 to {PORT_MAX}")
    found = _lowered(fields, where)
    listed = found.pop("nodes", None) or []
    if not isinstance(listed, list) or len(listed) > RELAY_MAP_NODES_MAX:
        raise ConfigError(f"{where}: Nodes is a list of at most {RELAY_MAP_NODES_MAX}")
    wire = _fit(WireDerpRegion, found, where)
    wire.nodes = [_node(_lowered(node, f"{where}: Nodes"), where) for node in listed]
    return region_of(wire, RegionId(int(number)))


def _node(fields: Mapping[str, Any], where: str) -> WireDerpNode:
    wire = _fit(WireDerpNode, fields, where)
    if not -1 <= (wire.stun_port or 0) <= PORT_MAX or not 0 <= (wire.derp_port or 0) <= PORT_MAX:
        raise ConfigError(f"{where}: {wire.host_name or 'a node'} has an impossible port")
    return wire


def _fit(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """A wire struct of those fields that it has."""
    names = {field.encode_name.lower(): field.encode_name for field in msgspec.structs.fields(kind)}
    known = {names[name]: value for name, value in fields.items() if name in names}
    try:
        return msgspec.convert(known, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
