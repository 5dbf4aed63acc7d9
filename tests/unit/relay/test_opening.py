"""A client's first words beside the relay's: ordinary and fast start, in pieces, over TLS, and what goes wrong."""

from __future__ import annotations

import random
import ssl
import warnings
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from meshnode.base.errors import MeshError, RemoteProtocolError
from meshnode.base.keys import NodePrivate
from meshnode.engine import _native
from meshnode.relay.identity import make_self_signed, meta_certificate
from meshnode.relay.opening import Opening, UpgradeRefused
from meshnode.relay.session import Session, Want
from meshnode.relay.trust import told_key
from meshnode.wire import derp

RELAY, CLIENT, OTHER = (NodePrivate(bytes([n]) * 32) for n in (1, 2, 3))
PACKET = derp.emit_send(OTHER.public().raw, b"\x04first")
DEEP = "early, and not lost"


def opening(told: NodePrivate | None = None, **about: Any) -> Opening:
    return Opening(CLIENT, "relay", about.pop("ideal", ""), entropy=bytes, told=told and told.public(), **about)


class Client:
    """An Opening, and the frames behind it."""

    def __init__(self, first: Opening) -> None:
        self.opening = first
        self.frames = derp.Frames(derp.TO_CLIENT)
        self.out = bytearray(first.start())
        if first.is_said:
            self.out += PACKET
        self.got: list[bytes] = []

    def receive(self, data: bytes) -> None:
        if not self.opening.is_upgraded:
            data = self.opening.receive(data) or b""
        for kind, payload in self.frames.receive(data):
            if kind == derp.SERVER_KEY:
                login = self.opening.greet(payload)
                self.out += login + PACKET if login else b""
            elif kind == derp.SERVER_INFO:
                self.opening.admit(payload)
            elif kind == derp.RECV_PACKET:
                self.got.append(payload)


class Relay:
    """A Session that admits everybody, and sends a packet in the segment of its ServerInfo."""

    def __init__(self) -> None:
        self.session = Session(RELAY)
        self.frames = b""
        self.is_open = False

    def receive(self, data: bytes) -> bytes:
        if self.is_open:
            self.frames += data
            return b""
        if self.session.receive(data) is Want.ADMIT:
            self.is_open = True
            self.frames = self.session.rest
            self.session.out += self.session.create_server_info(bytes(24))
            self.session.out += derp.emit_recv(OTHER.public().raw, b"\x04" + DEEP.encode())
        out = bytes(self.session.out)
        self.session.out.clear()
        return out


@pytest.mark.parametrize("told", [None, RELAY])
@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_both_ends_meet_however_the_bytes_are_cut(told: NodePrivate | None, piece: int) -> None:
    client, relay = Client(opening(told)), Relay()
    for _ in range(8):
        sent, client.out = bytes(client.out), bytearray()
        answer = b"".join(relay.receive(sent[i : i + piece]) for i in range(0, len(sent), piece))
        for i in range(0, len(answer), piece):
            client.receive(answer[i : i + piece])
    assert client.opening.info is not None and client.opening.info.version == 2
    assert relay.session.client == CLIENT.public() and relay.session.is_fast is (told is not None)
    assert relay.frames == PACKET
    assert client.got == [OTHER.public().raw + b"\x04" + DEEP.encode()]


def test_request_login_and_packets_are_one_flight_and_no_answer_in_http_comes() -> None:
    client, relay = Client(opening(RELAY)), Relay()
    assert client.opening.is_fast and client.opening.is_said
    answer = relay.receive(bytes(client.out))
    assert relay.is_open and answer.startswith(b"\x01\0\0\0\x28DERP"), "the first byte is a frame's"
    client.receive(answer)
    assert client.opening.info is not None


def test_the_request_says_so_and_names_the_ideal_node() -> None:
    fast = opening(RELAY, ideal="900a").start()
    assert b"\r\nDerp-Fast-Start: 1\r\n" in fast and b"\r\nIdeal-Node: 900a\r\n" in fast
    assert b"Fast-Start" not in opening().start()


def test_a_websocket_begins_as_ever() -> None:
    slow = opening(RELAY, by_websocket=True)
    first = slow.start()
    assert not slow.is_fast and not slow.is_said
    assert b"Fast-Start" not in first and first.endswith(b"\r\n\r\n")


def test_another_key_than_the_one_told_is_fatal() -> None:
    client = Client(opening(OTHER))
    relay = Relay()
    with pytest.raises(RemoteProtocolError, match="box does not open"):
        relay.receive(bytes(client.out))
    with pytest.raises(RemoteProtocolError, match="another key"):
        client.receive(bytes(relay.session.out))


def test_a_server_info_of_another_relay_is_fatal() -> None:
    login = derp.ServerLogin(OTHER)
    login.client = CLIENT.public()
    with pytest.raises(RemoteProtocolError, match="box does not open"):
        Client(opening(RELAY)).receive(login.create_server_info(bytes(24)))


@pytest.mark.parametrize("piece", [1, 5, 4096])
@pytest.mark.parametrize(("status", "is_stripped"), [("404 Not Found", True), ("503 Busy", False)])
def test_a_refusal_in_http_is_understood_after_a_fast_start(status: str, is_stripped: bool, piece: int) -> None:
    first = opening(RELAY)
    first.start()
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nnope".encode()
    with pytest.raises(UpgradeRefused) as caught:
        for i in range(0, len(answer), piece):
            assert first.receive(answer[i : i + piece]) is None
    assert caught.value.is_stripped is is_stripped


@pytest.mark.parametrize("piece", [1, 5, 4096])
def test_who_answers_a_fast_start_in_http_after_all_is_followed(piece: int) -> None:
    """The header was lost on the way: the login, already on its way, is not said twice."""
    client, slow = Client(opening(RELAY)), Relay()
    sent = bytes(client.out).replace(b"Derp-Fast-Start: 1\r\n", b"")
    client.out.clear()
    answer = slow.receive(sent)
    assert answer.startswith(b"HTTP/1.1 101 ")
    for i in range(0, len(answer), piece):
        client.receive(answer[i : i + piece])
    assert client.opening.info is not None and not client.out and len(client.got) == 1


def test_what_is_neither_http_nor_a_relay_is_an_error() -> None:
    for told in (None, RELAY):
        with pytest.raises(MeshError):
            Client(opening(told)).receive(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    with pytest.raises(MeshError):
        Client(opening(RELAY)).receive(b"Hello, this is no answer\r\n\r\n")


def test_random_bytes_are_an_upgrade_or_one_kind_of_error() -> None:
    dice = random.Random(7)
    for _ in range(300):
        client = Client(opening(dice.choice((None, RELAY))))
        data = dice.choice((b"", b"HTTP/1.1 ", b"HTTP/1.1 101 x\r\n\r\n", b"\x01\0\0\0\x28DERP")) + dice.randbytes(200)
        with suppress(MeshError):
            while data:
                piece = dice.randint(1, 60)
                client.receive(data[:piece])
                data = data[piece:]
        assert client.opening.info is None


# --- the meta-certificate ---


def certificate(*names: str, serial: int = 2) -> bytes:
    signer = ed25519.Ed25519PrivateKey.generate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text, _validate=False) for text in names])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(signer.public_key())
    builder = builder.serial_number(serial).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(signer, None).public_bytes(Encoding.DER)


def test_our_own_meta_certificate_is_read() -> None:
    key = RELAY.public()
    assert _native.relay_key_of(meta_certificate(key)) == key.raw
    assert _native.relay_key_of(certificate(f"derpkey{key.raw.hex()}")) == key.raw


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x80",
        meta_certificate(RELAY.public())[:-1],
        certificate("derpkey" + "0a" * 32, serial=1),
        certificate("derpkey" + "0a" * 32, serial=3),
        certificate("derpkey" + "0a" * 32, serial=1 << 64),
        certificate("derpkey" + "0a" * 31),
        certificate("derpkey" + "0a" * 33),
        certificate("derpkey" + "0g" * 32),
        certificate("derpkey" + "0A" * 32),
        certificate("DERPkey" + "0a" * 32),
        certificate("derpkey" + "ä" * 32),
        certificate("relay"),
    ],
)
def test_any_other_certificate_tells_no_key(der: bytes) -> None:
    assert _native.relay_key_of(der) == b""


# --- over TLS, flight by flight ---


class Wire:
    """One end of TLS over memory."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if is_server else "relay"
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=is_server, server_hostname=name)
        self.is_shaken = False

    def take(self, data: bytes) -> bytes:
        """Plain bytes of a flight."""
        self.incoming.write(data)
        got = b""
        try:
            if not self.is_shaken:
                self.tls.do_handshake()
                self.is_shaken = True
            while True:
                got += self.tls.read(65536)
        except ssl.SSLWantReadError:
            return got


def contexts(folder: Path, version: ssl.TLSVersion, *, meta: bool) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pem = make_self_signed(["relay"])
    extra = ssl.DER_cert_to_PEM_cert(meta_certificate(RELAY.public())).encode() if meta else b""
    path = folder / "chain.pem"
    path.write_bytes(pem + extra)
    server.load_cert_chain(path)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for each in (server, client):
        each.minimum_version = each.maximum_version = version
    return server, client


def round_trips(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[int, int]:
    """(until the relay has our first packet, until it has admitted us), the TCP handshake's one not counted.

    Each turn all that the client has said reaches the relay, and all that the relay answers reaches the client.
    """
    ours, theirs = Wire(client, is_server=False), Wire(server, is_server=True)
    ours.take(b"")
    relay, first, packet_after = Relay(), None, 0
    for turn in range(1, 10):
        plain = theirs.take(ours.outgoing.read())
        if plain and (answer := relay.receive(plain)):
            theirs.tls.write(answer)
        if relay.frames == PACKET and not packet_after:
            packet_after = turn
        plain = ours.take(theirs.outgoing.read())
        if first is None and ours.is_shaken:
            key = told_key(ours.tls)
            assert key in (b"", RELAY.public().raw)
            first = Client(opening(RELAY if key else None))
        elif first is not None and plain:
            first.receive(plain)
        if first is not None and first.opening.info is not None:
            return packet_after, turn
        if first is not None and first.out:
            ours.tls.write(bytes(first.out))
            first.out.clear()
    raise AssertionError("not admitted")


@pytest.mark.parametrize(
    ("version", "meta", "expected"),
    [
        (ssl.TLSVersion.TLSv1_3, True, (2, 2)),
        (ssl.TLSVersion.TLSv1_3, False, (3, 3)),
        (ssl.TLSVersion.TLSv1_2, True, (4, 4)),
        (ssl.TLSVersion.TLSv1_2, False, (4, 4)),
    ],
)
def test_a_fast_start_saves_a_round_trip_and_wants_tls_1_3_and_the_meta_certificate(
    tmp_path: Path, version: ssl.TLSVersion, meta: bool, expected: tuple[int, int]
) -> None:
    assert round_trips(*contexts(tmp_path, version, meta=meta)) == expected
