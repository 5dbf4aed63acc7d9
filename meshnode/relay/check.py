"""`meshnode derp --check HOST`: a relay looked at from outside, step by step, each with what to mend.

DNS, TCP, TLS and the certificate, the upgrade and the greeting, STUN, the clock, the round trip. A step that fails
ends the steps that need it. Nothing is logged in: any relay may be asked. An HTTP proxy that leads there is used, as a
node would.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final

from cryptography import x509

from meshnode.base.errors import ProtocolError, ProxyError, RelayError
from meshnode.base.proxy import Proxy
from meshnode.core.proxies import Proxies
from meshnode.relay.dial import matches_name
from meshnode.relay.identity import names_of, pin_of
from meshnode.relay.link import UpgradeRefused
from meshnode.run.connect import connect_through
from meshnode.wire import derp, stun, websocket
from meshnode.wire.http1 import ClientHttp

STEP_S: Final = 5.0
STUN_PORT: Final = 3478
STUN_TRIES: Final = 3
EXPIRY_WARNING: Final = timedelta(days=14)
SKEW_S: Final = 60.0
REPLY_MAX: Final = 4096
PINGS: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    step: str
    ok: bool
    text: str
    mend: str = ""
    """What to do about it; '' if nothing."""


class _Stop(Exception):
    """What follows needs the step that failed."""


async def run_check(
    target: str, *, ca_file: str = "", as_json: bool = False, show: Callable[[str], Any] = print
) -> int:
    """Look at HOST[:PORT] and print what was found; 0 if all is well."""
    host, port = _split(target)
    findings = await check(host, port, ca_file=ca_file)
    if as_json:
        show(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            show(f"{'ok  ' if finding.ok else 'FAIL'} {finding.step:<12} {finding.text}")
            if finding.mend:
                show(f"     {'':<12} → {finding.mend}")
    return 0 if all(finding.ok for finding in findings) else 1


@dataclass(frozen=True, slots=True)
class _Way:
    """How to reach the relay."""

    address: tuple[str, int]
    """Through a proxy the name, which the proxy resolves."""
    proxy: Proxy | None
    ca_file: str

    async def open(self, **tls: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, with TLS if `ssl` and `server_hostname` say so."""
        if self.proxy is None:
            return await asyncio.open_connection(*self.address, **tls)
        sock = await connect_through(self.proxy, *self.address, ca_file=self.ca_file)
        return await asyncio.open_connection(sock=sock, **tls)


async def check(
    host: str, port: int, *, ca_file: str = "", stun_port: int = STUN_PORT, proxies: Proxies | None = None
) -> list[Finding]:
    """Every finding about one relay. proxies: None goes by the environment."""
    findings: list[Finding] = []
    proxy = (proxies or Proxies("", os.environ)).choose("https", host, port)
    with suppress(_Stop):
        address = await _resolve(host, port, findings) if proxy is None else (host, port)
        way = _Way(address, proxy, ca_file)
        certificate, reader, writer = await _connect(host, way, findings)
        try:
            await _greet(host, reader, writer, findings)
        except UpgradeRefused as error:
            await _try_websocket(host, way, certificate is not None, error, findings)
        finally:
            writer.transport.abort()
    if proxy is None and findings and findings[0].ok:
        await _stun(host, stun_port, findings)
    return findings


def _split(target: str) -> tuple[str, int]:
    with suppress(ValueError):
        return str(ip_address(target.strip("[]"))), 443
    host, sep, port = target.rpartition(":")
    if sep and port.isdigit() and 0 < int(port) < 65536:
        return host.strip("[]"), int(port)
    return target.strip("[]"), 443


async def _resolve(host: str, port: int, findings: list[Finding]) -> tuple[str, int]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        mend = "make a DNS record for it, or use its IP address: --self-signed certificates work by bare IP"
        findings.append(Finding("DNS", False, f"{host} does not resolve: {error.strerror}", mend))
        raise _Stop from None
    addresses = sorted({str(entry[4][0]) for entry in found})
    findings.append(Finding("DNS", True, f"{host} is {', '.join(addresses)}"))
    return str(found[0][4][0]), port


async def _connect(
    host: str, way: _Way, findings: list[Finding]
) -> tuple[x509.Certificate | None, asyncio.StreamReader, asyncio.StreamWriter]:
    started = time.monotonic()
    try:
        async with asyncio.timeout(STEP_S):
            _, probe = await way.open()
    except ProxyError as error:
        findings.append(Finding("proxy", False, str(error)))
        raise _Stop from None
    except (OSError, TimeoutError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        mend = f"is the relay running there, and does a firewall let TCP {way.address[1]} in?"
        findings.append(Finding("TCP", False, f"{way.address[0]} port {way.address[1]}: {why}", mend))
        raise _Stop from None
    through = f" through the proxy {way.proxy}" if way.proxy is not None else ""
    findings.append(Finding("TCP", True, f"connected{through} in {(time.monotonic() - started) * 1000:.1f} ms"))
    probe.transport.abort()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await way.open(ssl=context, server_hostname=host)
    except (OSError, TimeoutError) as error:
        mend = "it may speak plain HTTP (--plain), which only clients configured for it use"
        findings.append(Finding("TLS", False, getattr(error, "reason", None) or str(error) or "no answer", mend))
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(STEP_S):
                return None, *await way.open()
        raise _Stop from None
    tls = writer.get_extra_info("ssl_object")
    findings.append(Finding("TLS", True, f"{tls.version()}, {tls.cipher()[0]}"))
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    findings.append(await _judge(host, way, certificate))
    return certificate, reader, writer


async def _judge(host: str, way: _Way, certificate: x509.Certificate) -> Finding:
    names, pin = names_of(certificate), pin_of(certificate)
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    about = f"for {', '.join(names) or 'no name'}, {left.days} days left"
    if left < timedelta(0):
        return Finding(
            "certificate", False, f"expired {-left.days} days ago", "renew it; the relay reads the file again"
        )
    if not any(matches_name(name, host) for name in names):
        return Finding("certificate", False, about, f"get one for {host}, or add {host} with --host")
    context = ssl.create_default_context()
    if way.ca_file:
        context.load_verify_locations(cafile=way.ca_file)
    try:
        async with asyncio.timeout(STEP_S):
            _, writer = await way.open(ssl=context, server_hostname=host)
        writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "certificate", True, f"{about}; no authority vouches for it ({error.verify_message})",
            f"pin it in the relay map, CertName: {pin}",
        )  # fmt: skip
    except (OSError, TimeoutError) as error:
        return Finding("certificate", False, f"{about}; a second connection failed: {error}")
    if left < EXPIRY_WARNING:
        return Finding("certificate", True, about, "it expires soon: is its renewal working?")
    return Finding("certificate", True, about)


async def _greet(
    host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, findings: list[Finding]
) -> None:
    """UpgradeRefused if what answers does not change the protocol."""
    http = ClientHttp(host, body_limit=REPLY_MAX)
    writer.write(http.upgrade("GET", "/derp", "DERP", [("User-Agent", "meshnode-check")]))
    frames = derp.Frames(derp.TO_CLIENT)
    try:
        async with asyncio.timeout(STEP_S):
            response = None
            while response is None:
                data = await reader.read(65536)
                response = http.receive(data)
            if response.status != 101:
                raise UpgradeRefused(response.status)
            found = frames.receive(response.rest)
            while not found:
                data = await reader.read(65536)
                if not data:
                    raise RelayError("it closed the connection without a greeting")
                found = frames.receive(data)
    except UpgradeRefused:
        raise
    except (OSError, TimeoutError, ProtocolError, RelayError) as error:
        findings.append(
            Finding("upgrade", False, "no answer in time" if isinstance(error, TimeoutError) else str(error))
        )
        raise _Stop from None
    kind, payload = found[0]
    if kind != derp.SERVER_KEY or payload[: len(derp.MAGIC)] != derp.MAGIC:
        findings.append(Finding("upgrade", False, "what answers is no relay", "is this the relay's port?"))
        raise _Stop
    version = response.headers.get("derp-version", "?")
    findings.append(Finding("upgrade", True, f"relay protocol {version}, key nodekey:{payload[8:40].hex()[:16]}…"))
    if date := response.headers.get("date"):
        skew = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
        mend = "" if abs(skew) < SKEW_S else "set the clock of the relay's machine (or of this one) by NTP"
        findings.append(Finding("clock", abs(skew) < SKEW_S, f"{skew:+.0f} s from ours", mend))


async def _try_websocket(host: str, way: _Way, has_tls: bool, refused: UpgradeRefused, findings: list[Finding]) -> None:
    """Something strips `Upgrade: DERP`: does it let WebSocket through?"""
    mend = "a proxy in between may strip 'Upgrade: DERP'; let it through, or at least WebSocket"
    text = f"HTTP status {refused.status} instead of an upgrade"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    upgrade = websocket.ClientUpgrade("derp", os.urandom(websocket.NONCE_LEN))
    http = ClientHttp(host, body_limit=0, head_only=True)
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await way.open(**({"ssl": context, "server_hostname": host} if has_tls else {}))
            try:
                writer.write(http.upgrade("GET", "/derp", "websocket", upgrade.headers))
                answer = None
                while answer is None:
                    answer = http.receive(await reader.read(65536))
            finally:
                writer.transport.abort()
        if answer.status != 101:
            raise RelayError(f"{answer.status}")
        upgrade.check(answer)
    except (OSError, TimeoutError, ProtocolError, RelayError):
        findings.append(Finding("upgrade", False, f"{text}, nor by WebSocket", mend))
        return
    mend = "let 'Upgrade: DERP' through: meshnode speaks WebSocket here, stock clients cannot"
    findings.append(Finding("upgrade", False, f"{text}; WebSocket passes", mend))


async def _stun(host: str, port: int, findings: list[Finding]) -> None:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else 0
    try:
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
        sock = socket.socket(found[0][0], socket.SOCK_DGRAM)
    except OSError as error:
        findings.append(Finding("STUN", False, str(error)))
        return
    times: list[float] = []
    seen = ""
    with sock:
        sock.setblocking(False)
        for _ in range(PINGS):
            txid, started = os.urandom(stun.TXID_LEN), time.monotonic()
            try:
                await loop.sock_sendto(sock, stun.emit_request(txid), found[0][4])
                async with asyncio.timeout(STEP_S / STUN_TRIES):
                    got, endpoint = stun.parse_response(await loop.sock_recv(sock, 1500))
            except (OSError, TimeoutError, ProtocolError):
                if not times and len(findings) and _ + 1 >= STUN_TRIES:
                    break
                continue
            if got == txid:
                times.append((time.monotonic() - started) * 1000)
                seen = str(endpoint)
    if not times:
        mend = f"is UDP {port} open in the firewall, and published by the container? (--stun off if not wanted)"
        findings.append(Finding("STUN", False, f"no answer on UDP port {port}", mend))
        return
    findings.append(Finding("STUN", True, f"we are {seen}; {min(times):.1f} ms"))
