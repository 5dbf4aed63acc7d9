"""Fuzz SSDP: answers to a search, and what becomes of the location in them."""

from __future__ import annotations

from meshnode.wire import ssdp, upnp


def target(data: bytes) -> None:
    """One input."""
    found = ssdp.parse_answer(data)
    assert len(found.location) <= ssdp.LOCATION_MAX
    port, path = upnp.parse_url(found.location)
    assert 0 < port < 65536 and path.startswith("/") and path.isascii() and path.isprintable() and " " not in path


SEEDS = [
    b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nEXT:\r\nLOCATION: http://192.168.50.1:45071/rootDesc.xml\r\n\r\n",
    b"HTTP/1.1 200 OK\nlocation:http://[fe80::1%25eth0]:80/x?y=z#f\n\n",
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("ssdp", target, SEEDS)
