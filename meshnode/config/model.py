"""One frozen dataclass per section; help, unit, default and names beside each field.

The command line, the environment and the file are all read from these fields, so that
`control_url` in the file is `--control-url` is `MESHNODE_CONTROL_URL`. A Secret never prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Final

DEFAULT_CONTROL_URL: Final = "https://controlplane.tailscale.com"
DEFAULT_MTU: Final = 1280
PATHS: Final = ("auto", "relay", "direct")
TCP_ECN: Final = ("accept", "ask", "off")
PORTMAP: Final = ("auto", "on", "off", "pmp", "pcp", "upnp")
CAPTIVE_PORTAL: Final = ("auto", "on", "off")
MEMORY: Final = "mem:"
"""The state directory that is none: identity in memory, logout at the end."""


class Secret:
    """Text that never prints: an auth key. `reveal` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the wire; never for a log or an error."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "<Secret hidden>" if self._text else "<Secret empty>"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Secret cannot be pickled")


NO_SECRET: Final = Secret("")


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    metavar: str = "",
    aliases: tuple[str, ...] = (),
    flag: bool = True,
    choices: tuple[str, ...] = (),
    variables: bool = True,
    key: str = "",
    bounds: tuple[float, float] | None = None,
) -> Any:
    """A dataclass field with everything a reader of any source wants to know about it.

    aliases: further environment names, in the order they are tried after MESHNODE_<NAME>.
    flag: whether the command line of `up` has it. variables: whether the environment does.
    key: its name in the file's table, where that says the rest already; '' is the field's own.
    bounds: the least and the greatest value.
    """
    about = {
        "help": help, "unit": unit, "metavar": metavar, "aliases": aliases, "flag": flag, "choices": choices,
        "variables": variables, "key": key, "bounds": bounds,
    }  # fmt: skip
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True)
class Tailscale:
    """`[tailscale]`: which tailnet, as whom."""

    control_url: str = setting(
        DEFAULT_CONTROL_URL, "control server to join", metavar="U", aliases=("TAILSCALE_LOGIN_SERVER",)
    )
    auth_key: Secret = setting(
        NO_SECRET,
        "pre-auth key: env:NAME, file:PATH, or the key itself; needed for the first start only",
        metavar="K",
        aliases=("TAILSCALE_AUTH_KEY", "TS_AUTHKEY", "TS_AUTH_KEY"),
    )
    hostname: str = setting("", "name to ask for; the machine's own if empty", metavar="H", aliases=("TS_HOSTNAME",))
    state_dir: str = setting(
        "",
        "where the identity lives; mem: keeps nothing and logs out at the end "
        "(default $XDG_STATE_HOME/meshnode/NETWORK)",
        metavar="D|mem:",
        aliases=("TS_STATE_DIR",),
    )
    ephemeral: bool = setting(False, "log out at the end, so that the node is gone at once")
    ca_file: str = setting(
        "",
        "PEM file of certificate authorities to trust beside the system's, for control and relays",
        metavar="FILE",
    )
    proxy: Secret = setting(
        NO_SECRET,
        "HTTP proxy for control and relays, http://[USER:PASSWORD@]HOST[:PORT]; env:NAME and file:PATH hold one; "
        "off: none (default HTTPS_PROXY and its kin)",
        metavar="URL|off",
    )
    captive_portal: str = setting(
        "auto",
        "look for a captive portal, by plain HTTP to relays and control, when no UDP passes; auto: outside containers",
        choices=CAPTIVE_PORTAL,
        flag=False,
    )
    port: int = setting(0, "UDP port of the tunnel; 0 lets the system choose", metavar="N")
    advertise: tuple[str, ...] = setting(
        (),
        "address at which peers reach this node from outside, beside those it finds: a published port of a container, "
        "a forwarded one of a router",
        metavar="IP:PORT",
    )
    home_region: int = setting(
        0, "number of the relay region to live in while it can be reached; 0 is the nearest", metavar="N", flag=False
    )
    mtu: int = setting(DEFAULT_MTU, "largest packet inside the tunnel", unit="bytes", flag=False)
    plain_relays: bool = setting(False, "speak to relays without TLS: for tests on one machine", flag=False)
    insecure_relays: bool = setting(False, "honour InsecureForTests of the relay map", flag=False)
    paths: str = setting(
        "auto",
        "ways to peers: auto takes the best, relay sends no byte to them by UDP, direct sends no data by relays",
        choices=PATHS,
    )
    udp_gso: str = setting(
        "auto",
        "one system call for many datagrams; never-equal-tail is for drivers that corrupt batches of equal lengths",
        choices=("auto", "off", "never-equal-tail"),
        flag=False,
    )
    udp_gro: str = setting(
        "auto", "many datagrams from one system call, as the system coalesces them", choices=("auto", "off"), flag=False
    )
    use_loopback: bool = setting(False, "offer loopback addresses to peers: for nodes on one machine", flag=False)


@dataclass(frozen=True, slots=True)
class Wireguard:
    """`[wireguard]`: a plain WireGuard network, in the place of a tailnet."""

    config_file: str = setting(
        "", "WireGuard configuration, as wg-quick reads it; commands in it are never run", flag=False, variables=False
    )


@dataclass(frozen=True, slots=True)
class Tunnel:
    """`[tunnel]`: what is served into the network, the doors out of it, and how its TCP behaves."""

    serve: tuple[str, ...] = setting(
        (),
        "serve TARGET on a tailnet port; SCHEME is tcp or http, TARGET is HOST:PORT, a URL or a directory",
        metavar="SCHEME:PORT=TARGET",
    )
    tun: str = setting(
        "", "kernel interface to make: every program of this machine reaches peers; needs CAP_NET_ADMIN", metavar="NAME"
    )
    socks5: str = setting("", "SOCKS5 door into the tailnet", metavar="HOST:PORT", aliases=("TS_SOCKS5_SERVER",))
    tcp_memory: int = setting(
        0,
        "most that all TCP connections of the network together may hold, at least 1048576; windows shrink before that; "
        "0: 256 MiB or an eighth of the machine's memory, whichever is less",
        unit="bytes",
        flag=False,
    )
    tcp_ecn: str = setting(
        "accept",
        "congestion marks on TCP connections: accept agrees when a peer asks, ask asks as well, off does neither",
        choices=TCP_ECN,
        flag=False,
    )


@dataclass(frozen=True, slots=True)
class Disco:
    """`[disco]`: how direct paths to peers are looked for, watched and given up."""

    heartbeat_interval: float = setting(
        2.0,
        "between probes of a direct path in use; it keeps NATs open",
        unit="s",
        flag=False,
        bounds=(0.1, 60),
    )
    reprobe_interval: float = setting(
        25.0, "between looks for a better path, or for any while relayed", unit="s", flag=False, bounds=(1, 3600)
    )
    probe_timeout: float = setting(
        5.0, "an answer to a probe that takes longer does not count", unit="s", flag=False, bounds=(0.2, 60)
    )
    degraded_after_failures: int = setting(
        3, "probes in a row without answer that put a path in doubt", flag=False, bounds=(1, 100)
    )
    degraded_timeout: float = setting(
        10.0, "a path in doubt is given up after this long without an answer", unit="s", flag=False, bounds=(0.5, 600)
    )
    portmap: str = setting(
        "auto",
        "ask the gateway for a port outside: by all of NAT-PMP, PCP and UPnP, or one of them; auto: not in containers",
        choices=PORTMAP,
        flag=False,
    )
    port_prediction: bool = setting(
        False,
        "meet peers behind NATs that hide their ports by trying many; both sides need it; looks like a port scan",
        flag=False,
    )


@dataclass(frozen=True, slots=True)
class Derp:
    """`[derp]`: a relay of our own, beside a node (`up --derp`) or alone (`meshnode derp`)."""

    derp: bool = setting(False, "run a relay in this process, for the members of this tailnet", key="enabled")
    derp_listen: tuple[str, ...] = setting(
        (), "address to relay on (default :443)", metavar="[HOST]:PORT", key="listen", flag=False
    )
    derp_stun: str = setting(":3478", "address of STUN; off: none", metavar="[HOST]:PORT|off", key="stun", flag=False)
    derp_http: str = setting(
        "off",
        "plain HTTP beside TLS: captive-portal checks, and the way to https",
        metavar="[HOST]:PORT|off",
        key="http",
        flag=False,
    )
    derp_host: tuple[str, ...] = setting(
        (), "name or address by which clients reach the relay; the first is the one in the map", metavar="NAME",
        key="host", flag=False,
    )  # fmt: skip
    derp_dir: str = setting(
        "", "where key and certificates are kept (default $XDG_STATE_HOME/meshnode/derp)", metavar="DIR", key="dir",
        flag=False,
    )  # fmt: skip
    derp_self_signed: bool = setting(
        False, "make a certificate, keep it, print the pin for the relay map", key="self_signed", flag=False
    )
    derp_cert: str = setting(
        "", "certificate chain, PEM; read again when it changes", metavar="FILE", key="cert", flag=False
    )
    derp_key: str = setting("", "its key, PEM, if not in the same file", metavar="FILE", key="key", flag=False)
    derp_acme: str = setting(
        "",
        "get certificates for the hosts from an ACME server, whose terms of service are thereby agreed to: "
        "letsencrypt, or the URL of a directory",
        metavar="letsencrypt|URL",
        key="acme",
        flag=False,
    )
    derp_acme_email: str = setting(
        "", "where the ACME server may write to about the account", metavar="ADDRESS", key="acme_email", flag=False
    )
    derp_acme_by: str = setting(
        "auto",
        "how names are proved: http-01 needs port 80, tls-alpn-01 port 443; auto: http-01 if there is plain HTTP",
        choices=("auto", "http-01", "tls-alpn-01"),
        key="acme_by",
        flag=False,
    )
    derp_plain: bool = setting(
        False, "no TLS at all: for development, or behind a proxy that has it", key="plain", flag=False
    )
    derp_open: bool = setting(False, "anybody may use the relay", key="open", flag=False)
    derp_verify_url: str = setting(
        "", "HTTP server that says who may use the relay, as Headscale's /verify", metavar="URL", key="verify_url",
        flag=False,
    )  # fmt: skip
    derp_allow_keys: str = setting(
        "", "file of node keys that may use the relay, one a line; read again when it changes", metavar="FILE",
        key="allow_keys", flag=False,
    )  # fmt: skip
    derp_ca_file: str = setting(
        "", "certificate authorities to trust beside the system's, for verify_url and mesh", metavar="FILE",
        key="ca_file", flag=False,
    )  # fmt: skip
    derp_mesh: tuple[str, ...] = setting(
        (), "another relay of the same region", metavar="HOST[:PORT]", key="mesh", flag=False
    )
    derp_mesh_key: Secret = setting(
        NO_SECRET,
        "key that the relays of a region share: env:NAME or file:PATH",
        metavar="K",
        key="mesh_key",
        flag=False,
    )
    derp_metrics: str = setting("", "Prometheus metrics over HTTP", metavar="HOST:PORT", key="metrics", flag=False)
    derp_bootstrap_dns: tuple[str, ...] = setting(
        (), "name whose addresses clients may ask for while their own DNS fails, as the control server's",
        metavar="NAME", key="bootstrap_dns", flag=False,
    )  # fmt: skip
    derp_region: int = setting(
        900, "region number in the printed map", metavar="N", key="region", flag=False, bounds=(1, 65535)
    )
    derp_clients: int = setting(65536, "clients at once", metavar="N", key="clients", flag=False, bounds=(1, 1_000_000))
    derp_rate: int = setting(
        0, "bytes a second from one client; 0: no limit", unit="bytes/s", metavar="N", key="rate", flag=False,
        bounds=(0, 1e12),
    )  # fmt: skip
    derp_per_ip: int = setting(
        0, "connections of one address; 0: no limit", metavar="N", key="per_ip", flag=False, bounds=(0, 1_000_000)
    )
    derp_per_ip_rate: int = setting(
        0, "new connections a second from one address; 0: no limit", metavar="N", key="per_ip_rate", flag=False,
        bounds=(0, 1_000_000),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """`[run]`: how the process behaves."""

    timeout: float = setting(60.0, "give up if not ready after this long; 0 waits for ever", unit="s", metavar="S")
    log: str = setting("text", "form of the log lines on stderr", choices=("text", "json"))
    log_level: str = setting("info", "least level written", choices=("debug", "info", "warning", "error", "off"))
    metrics: str = setting(
        "", "Prometheus metrics at /metrics and health at /healthz, over plain HTTP", metavar="HOST:PORT"
    )
    loop: str = setting("asyncio", "event loop", choices=("asyncio", "uvloop"))


@dataclass(frozen=True, slots=True)
class PlainNetwork:
    """A plain WireGuard network of the file."""

    name: str
    config_file: str
    tunnel: Tunnel = field(default_factory=Tunnel)


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of one process, and the network's name in the file."""

    network: str = "default"
    tailscale: Tailscale = field(default_factory=Tailscale)
    wireguard: Wireguard = field(default_factory=Wireguard)
    """Of a file with one network; `plain` has them all."""
    tunnel: Tunnel = field(default_factory=Tunnel)
    """Of the tailnet; without one, of the only plain network."""
    disco: Disco = field(default_factory=Disco)
    derp: Derp = field(default_factory=Derp)
    run: Run = field(default_factory=Run)
    plain: tuple[PlainNetwork, ...] = ()
    """The plain WireGuard networks to run."""
    has_tailnet: bool = True


SECTIONS: Final[dict[str, type]] = {
    "tailscale": Tailscale, "wireguard": Wireguard, "tunnel": Tunnel, "disco": Disco, "derp": Derp, "run": Run,
}  # fmt: skip


def settings() -> Iterator[tuple[str, Field[Any]]]:
    """(section, field) of every setting, in the order of the reference page."""
    for name, section in SECTIONS.items():
        for item in fields(section):
            yield name, item


def environment_names(item: Field[Any]) -> tuple[str, ...]:
    """The variables that set it, the first that is non-empty wins."""
    return (f"MESHNODE_{item.name.upper()}", *item.metadata["aliases"]) if item.metadata["variables"] else ()


def key_of(item: Field[Any]) -> str:
    """Its name in the file's table."""
    return item.metadata["key"] or item.name


def default_of(item: Field[Any]) -> Any:
    """The value when no source speaks."""
    assert item.default is not MISSING
    return item.default


def out_of_bounds(item: Field[Any], value: Any) -> str:
    """What is wrong with a number outside the bounds of its setting; '' if nothing."""
    bounds = item.metadata["bounds"]
    if bounds is None or bounds[0] <= value <= bounds[1]:
        return ""
    unit = f" {item.metadata['unit']}" if item.metadata["unit"] else ""
    return f"{_number(value)}{unit} is outside {_number(bounds[0])} to {_number(bounds[1])}{unit}"


def _number(value: float) -> str:
    """As a person writes it."""
    return str(int(value)) if value == value // 1 else f"{value:g}"
