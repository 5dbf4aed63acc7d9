"""Fuzz target: the text of a WireGuard configuration file."""

from __future__ import annotations

from meshnode.base.errors import ConfigError
from meshnode.config.wgconf import WgConfig, parse_wgconf
from tests.fuzz.driver import run

KEY = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def target(data: bytes) -> None:
    """Read or refused in one line that holds no key; what is read can be written and read again to the same."""
    text = data.decode(errors="replace")
    try:
        config = parse_wgconf(text)
    except ConfigError as error:
        assert "\n" not in str(error) and KEY.decode() not in str(error), error
        return
    assert KEY.decode() not in repr(config)
    again = parse_wgconf(written(config))
    assert (again.addresses, again.peers, again.port, again.mtu) == (
        config.addresses, config.peers, config.port, config.mtu,
    )  # fmt: skip


def written(config: WgConfig) -> str:
    """The file that means this configuration."""
    from base64 import b64encode

    lines = ["[Interface]", f"PrivateKey={b64encode(config.private.reveal()).decode()}", f"MTU={config.mtu}"]
    lines += [f"ListenPort={config.port}", *(f"Address={ip}" for ip in config.addresses)]
    for peer in config.peers:
        lines += ["[Peer]", f"PublicKey={peer.key.base64}", f"PersistentKeepalive={peer.keepalive_s}"]
        lines += [f"AllowedIPs={prefix}" for prefix in peer.allowed]
        lines += [f"PresharedKey={b64encode(peer.psk.reveal()).decode()}"] if peer.psk else []
        host = f"[{peer.host}]" if ":" in peer.host else peer.host
        lines += [f"Endpoint={host}:{peer.port}"] if peer.host else []
    return "\n".join(lines)


PEER = b"[Peer]\nPublicKey=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n"
SEEDS = [
    b"[Interface]\nPrivateKey=" + KEY + b"\nAddress=10.0.0.2/24, fd00::2/64\nDNS=10.0.0.1,corp\nMTU=1380\n" + PEER
    + b"AllowedIPs=10.0.0.0/24,fd00::/64\nEndpoint=[2001:db8::1]:51820\nPersistentKeepalive=25\nPresharedKey=" + KEY,
    b"[interface] # x\nprivatekey = " + KEY + b"\nADDRESS=10.9.9.9\nPostUp=echo\nTable=off\nListenPort=51820\n" + PEER
    + b"Endpoint=vpn.example.com:1\nAllowedIPs=0.0.0.0/0\nPersistentKeepalive=off\n" + PEER,
    b"[Peer]\nAllowedIPs=::/0\n[Interface]\nJc=4",
]  # fmt: skip

if __name__ == "__main__":
    run("wgconf", target, SEEDS)
