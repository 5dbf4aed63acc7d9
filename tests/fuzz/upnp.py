"""Fuzz UPnP: descriptions of devices, and answers to calls: bombs, entities, floods, hosts that are not the gateway."""

from __future__ import annotations

from meshnode.wire import upnp

LOCATION = "http://192.168.50.1:45071/rootDesc.xml"


def target(data: bytes) -> None:
    """One input."""
    head, body = data[:1] or b"\0", data[1:]
    if head[0] & 1:
        answer = upnp.parse_call_answer(body, "AddAnyPortMapping")
        assert all(len(value) <= 2048 for value in answer.values())
        return
    services = upnp.parse_description(body, LOCATION)
    assert len(services) <= upnp.SERVICES_MAX
    for kind, (port, path) in services:
        assert kind in upnp.KINDS and 0 < port < 65536 and path.startswith("/") and path.isascii()


SEEDS = [
    b"\0<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType>"
    b"<controlURL>/ctl/IPConn</controlURL></service></serviceList></device></root>",
    b"\0<d:root xmlns:d='x'><d:URLBase>http://h:1/</d:URLBase><d:service><d:controlURL>c</d:controlURL><d:serviceType>"
    b"urn:schemas-upnp-org:service:WANPPPConnection:1</d:serviceType></d:service></d:root>",
    b"\0<!DOCTYPE r [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><r><x>&b;</x></r>",
    b"\1<s:Envelope xmlns:s='e'><s:Body><u:AddAnyPortMappingResponse xmlns:u='y'><NewReservedPort>1</NewReservedPort>"
    b"</u:AddAnyPortMappingResponse></s:Body></s:Envelope>",
    b"\1<Envelope><Body><Fault><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></Fault></Body></Envelope>",
]

if __name__ == "__main__":
    from tests.fuzz.driver import run

    run("upnp", target, SEEDS)
