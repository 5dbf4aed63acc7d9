"""`meshnode derp --check HOST`: a relay looked at from outside, step by step, each with what to mend.

DNS, TCP, TLS and the certificate, the upgrade and the greeting, the clock, the round trip, STUN. A step that fails
ends the steps that need it. Nothing is logged in: any relay may be asked. An HTTP proxy that leads there is used, as a
node would.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from meshnode.base.errors import ConfigError, ProtocolError, ProxyError, RelayError
from meshnode.core.proxies import Proxies
from meshnode.relay.check_tls import STEP_S, Finding, Way, judge, trusting
from meshnode.relay.opening import UpgradeRefused
from meshnode.relay.places import listen_addresses, parse_target
from meshnode.wire import derp, stun, websocket
from meshnode.wire.http1 import ClientHttp

HTTPS_PORT: Final = 443
STUN_PORT: Final = 3478
STUN_TRIES: Final = 3
SKEW_S: Final = 60.0
REPLY_MAX: Final = 4096
PINGS: Final = 5
FAR_MS: Final = 300.0
_PIN: Final = re.compile(r"sha256-raw:[0-9a-f]{64}")


class _Stop(Exception):
    """What follows needs the step that failed."""


async def run_check(
    target: str, *, ca_file: str = "", stun: str = "", pin: str | None = None, as_json: bool = False,
    show: Callable[[str], Any] = print,
) -> int:  # fmt: skip
    """Look at HOST[:PORT] and print what was found; 0 if all is well.

    stun: `[HOST]:PORT` of its STUN, or `off`. pin: what the relay map says of its certificate. ConfigError.
    """
    host, port = parse_target(target, "check", HTTPS_PORT)
    if pin is not None and not _PIN.fullmatch(pin.lower()):
        raise ConfigError(f"pin: {pin!r} is not sha256-raw: and 64 hex digits")
    if ca_file:
        _try_ca_file(ca_file)
    places = listen_addresses(stun, "stun") if stun else [("", STUN_PORT)]
    stun_port = places[0][1] if places else 0
    findings = await check(host, port, ca_file=ca_file, stun_port=stun_port, pin=pin or "")
    if as_json:
        show(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            show(f"{'ok  ' if finding.ok else 'FAIL'} {finding.step:<12} {finding.text}")
            if finding.mend:
                show(f"     {'':<12} → {finding.mend}")
    return 0 if all(finding.ok for finding in findings) else 1


def _try_ca_file(path: str) -> None:
    try:
        ssl.create_default_context().load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"ca_file: {path} cannot be used: {reason}") from None


async def check(
    host: str, port: int, *, ca_file: str = "", stun_port: int = STUN_PORT, pin: str = "",
    proxies: Proxies | None = None,
) -> list[Finding]:  # fmt: skip
    """Every finding about one relay. stun_port: 0 asks for none. proxies: None goes by the environment."""
    findings: list[Finding] = []
    proxy = (proxies or Proxies("", os.environ)).choose("https", host, port)
    with suppress(_Stop):
        address = await _resolve(host, port, findings) if proxy is None else (host, port)
        way = Way(address, proxy, ca_file)
        has_tls, reader, writer = await _connect(host, way, pin, findings)
        try:
            await _greet(host, reader, writer, findings)
            await _time(host, way, has_tls, findings)
        except UpgradeRefused as error:
            await _try_websocket(host, way, has_tls, error, findings)
        finally:
            writer.transport.abort()
    if proxy is None and stun_port and findings and findings[0].ok:
        await _stun(host, stun_port, findings)
    return findings


async def _resolve(host: str, port: int, findings: list[Finding]) -> tuple[str, int]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        mend = "make a DNS record for it, or use its IP address: --self-signed certificates work by bare IP"
        findings.append(Finding("DNS", False, f"{host} does not resolve: {error.strerror or error}", mend))
        raise _Stop from None
    addresses = sorted({str(entry[4][0]) for entry in found})
    findings.append(Finding("DNS", True, f"{host} is {', '.join(addresses)}"))
    return str(found[0][4][0]), port


async def _connect(
    host: str, way: Way, pin: str, findings: list[Finding]
) -> tuple[bool, asyncio.StreamReader, asyncio.StreamWriter]:
    """(whether it has TLS, a connection)."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(STEP_S):
            _, probe = await way.open()
    except ProxyError as error:
        findings.append(Finding("proxy", False, str(error)))
        raise _Stop from None
    except (OSError, TimeoutError) as error:
        why = (
            "no answer in time"
            if isinstance(error, TimeoutError)
            else (os.strerror(error.errno) if error.errno else str(error)).lower()
        )
        mend = f"is the relay running there, and does a firewall let TCP {way.address[1]} in?"
        findings.append(Finding("TCP", False, f"{way.address[0]} port {way.address[1]}: {why}", mend))
        raise _Stop from None
    through = f" through the proxy {way.proxy}" if way.proxy is not None else ""
    findings.append(Finding("TCP", True, f"connected{through} in {(time.monotonic() - started) * 1000:.1f} ms"))
    probe.transport.abort()
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await way.open(ssl=trusting(), server_hostname=host)
    except (OSError, TimeoutError) as error:
        mend = "it may speak plain HTTP (--plain), which only clients configured for it use"
        findings.append(Finding("TLS", False, getattr(error, "reason", None) or str(error) or "no answer", mend))
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(STEP_S):
                return False, *await way.open()
        raise _Stop from None
    tls = writer.get_extra_info("ssl_object")
    findings.append(Finding("TLS", True, f"{tls.version()}, {tls.cipher()[0]}"))
    findings += await judge(host, way, tls.getpeercert(binary_form=True), pin)
    return True, reader, writer


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
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        findings.append(Finding("upgrade", False, why, "is this the relay's port, and nothing else in between?"))
        raise _Stop from None
    kind, payload = found[0]
    if kind != derp.SERVER_KEY or payload[: len(derp.MAGIC)] != derp.MAGIC:
        findings.append(Finding("upgrade", False, "what answers is no relay", "is this the relay's port?"))
        raise _Stop
    version = response.headers.get("derp-version", "?")
    findings.append(Finding("upgrade", True, f"relay protocol {version}, key nodekey:{payload[8:40].hex()[:16]}…"))


async def _time(host: str, way: Way, has_tls: bool, findings: list[Finding]) -> None:
    """The round trip of a request on a connection that stands, the best of a few; and the clock beside ours."""
    http = ClientHttp(host, body_limit=REPLY_MAX)
    times: list[float] = []
    date = ""
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await way.open(**({"ssl": trusting(), "server_hostname": host} if has_tls else {}))
            try:
                for _ in range(PINGS):
                    started = time.monotonic()
                    writer.write(http.request("GET", "/derp/latency-check"))
                    answer = None
                    while answer is None:
                        answer = http.receive(await reader.read(65536))
                    times.append((time.monotonic() - started) * 1000)
                    date = answer.headers.get("date", "")
                    if not answer.reusable:
                        break
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ProtocolError) as error:
        if not times:
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            findings.append(
                Finding("latency", False, f"/derp/latency-check: {why}", "clients without UDP measure by it")
            )
            return
    mend = "far away: clients choose the nearest of several relays" if min(times) > FAR_MS else ""
    findings.append(Finding("latency", True, f"{min(times):.1f} ms for a request, the best of {len(times)}", mend))
    with suppress(ValueError, TypeError):
        skew = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
        mend = "" if abs(skew) < SKEW_S else "set the clock of the relay's machine (or of this one) by NTP"
        findings.append(Finding("clock", abs(skew) < SKEW_S, f"{skew:+.0f} s from ours", mend))


async def _try_websocket(host: str, way: Way, has_tls: bool, refused: UpgradeRefused, findings: list[Finding]) -> None:
    """Something strips `Upgrade: DERP`: does it let WebSocket through?"""
    mend = "a proxy in between may strip 'Upgrade: DERP'; let it through, or at least WebSocket"
    text = f"HTTP status {refused.status} instead of an upgrade"
    upgrade = websocket.ClientUpgrade("derp", os.urandom(websocket.NONCE_LEN))
    http = ClientHttp(host, body_limit=0, head_only=True)
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await way.open(**({"ssl": trusting(), "server_hostname": host} if has_tls else {}))
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
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        sock = socket.socket(found[0][0], socket.SOCK_DGRAM)
    except OSError as error:
        findings.append(Finding("STUN", False, str(error)))
        return
    times: list[float] = []
    seen = ""
    with sock:
        sock.setblocking(False)
        for number in range(PINGS):
            txid, started = os.urandom(stun.TXID_LEN), time.monotonic()
            try:
                await loop.sock_sendto(sock, stun.emit_request(txid), found[0][4])
                async with asyncio.timeout(STEP_S / STUN_TRIES):
                    got, endpoint = stun.parse_response(await loop.sock_recv(sock, 1500))
            except (OSError, TimeoutError, ProtocolError):
                if not times and number + 1 >= STUN_TRIES:
                    break
                continue
            if got == txid:
                times.append((time.monotonic() - started) * 1000)
                seen = str(endpoint)
    if not times:
        mend = f"is UDP {port} open in the firewall, and published by the container? (--check with --stun :PORT or off)"
        findings.append(Finding("STUN", False, f"no answer on UDP port {port}", mend))
        return
    findings.append(Finding("STUN", True, f"we are {seen}; {min(times):.1f} ms"))
