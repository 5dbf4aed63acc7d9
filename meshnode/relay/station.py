"""Station: a relay as its operator sees it: sockets, certificate, admission, neighbours, STUN, metrics, in order.

Opens what can fail before anything serves, closes in reverse. The certificate file is read again when it changes; a
bad one is told and the last good one stays.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from meshnode.base.addr import RegionId
from meshnode.base.errors import ConfigError, RelayError
from meshnode.base.keys import NodePrivate
from meshnode.netmap.model import RelayNode
from meshnode.relay import acme, identity, metrics
from meshnode.relay.acme import Acme
from meshnode.relay.admit import Admit, Gate, KeysFile, allow_everybody
from meshnode.relay.bootstrap import BootstrapDns
from meshnode.relay.certificate import CertificateFiles
from meshnode.relay.inherit import has_inherited, inherited_sockets
from meshnode.relay.mesh import parse_mesh_key
from meshnode.relay.options import DialOptions
from meshnode.relay.places import LOOPBACK, OFF, listen_addresses, parse_target, usual_host
from meshnode.relay.plan import Plan, check_companions
from meshnode.relay.server import RelayServer, listen_on
from meshnode.relay.session import Page, Role
from meshnode.relay.stun import StunServer
from meshnode.relay.verify import VerifyUrl
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger
from meshnode.wire.http1 import Request

HTTPS_PORT: Final = 443
HTTP_NAME: Final = "http"
"""FileDescriptorName of an inherited socket for plain HTTP."""
PLAIN_PAGES: Final = ("/generate_204", "/healthz", "/robots.txt")
"""Served by plain HTTP; everything else is by https."""
METRICS_PAGES: Final = ("/metrics", "/debug/varz")
"""The second is where derper has them."""
RELOAD_S: Final = 15.0
_log = get_logger("derp")


class Station:
    """One relay at work. Made by `start`, ended by `aclose`."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self.plan = plan
        self.clock = clock
        self.server: RelayServer
        self.stun: StunServer | None = None
        self.pin = ""
        """Of a self-signed certificate, as a relay map names it."""
        self._rooms = AsyncExitStack()
        self._started = clock.wall()
        self._files: CertificateFiles | None = None
        self._bootstrap: BootstrapDns
        self._gate: Gate | None = None
        self._acme: Acme | None = None
        self._pem: bytes | None = None
        """What clients meet now."""
        self._kept: bytes | None = None
        """Of an earlier run, from the ACME server."""

    @classmethod
    async def start(cls, plan: Plan, *, clock: Clock | None = None) -> Station:
        """ConfigError, StateError, ListenError: what is wrong, before a single client is served."""
        station = cls(plan, clock or Clock())
        try:
            await station._open()
        except BaseException:
            await station.aclose()
            raise
        return station

    async def aclose(self) -> None:
        """Stop at once. Idempotent."""
        await self._rooms.aclose()

    async def drain(self, over_s: float = 10.0) -> None:
        """Take no more clients and let those here go in good order; `aclose` is still due."""
        await self.server.drain(over_s)

    def reload(self) -> None:
        """Certificate and lists anew, as for SIGHUP."""
        _log.info("certificate and lists are looked at again")
        if self._files is not None:
            self._load_certificate(self._files, force=True)
        if self._gate is not None:
            self._gate.forget()

    def region(self) -> dict[str, Any]:
        """The entry of a relay map for this relay."""
        plan = self.plan
        return identity.region_entry(
            number=plan.region,
            code="own",
            host=self.host,
            port=self.server.port,
            stun_port=self.stun.port if self.stun is not None else 0,
            pin=self.pin,
        )

    @property
    def host(self) -> str:
        """By which clients reach us."""
        return self.plan.hosts[0] if self.plan.hosts else "127.0.0.1"

    # --- opening ---

    async def _open(self) -> None:
        check_companions(self.plan)
        hosts = tuple(usual_host(text, "host") for text in self.plan.hosts)
        plan = self.plan = replace(self.plan, hosts=hosts)
        self._bootstrap = BootstrapDns([usual_host(text, "bootstrap_dns") for text in plan.bootstrap_dns])
        neighbours = [_neighbour(text, number) for number, text in enumerate(plan.mesh)]
        options = self._dial_options()
        admit = await self._admission()
        mesh_key = parse_mesh_key(plan.mesh_key) if plan.mesh_key else ""
        if plan.mesh and not mesh_key:
            raise ConfigError("mesh: the relays of a region share a key; give it with --mesh-key env:NAME or file:PATH")
        key = identity.load_key(plan.folder, self.clock)
        self.server = RelayServer(
            private=key, admit=admit, clock=self.clock, limits=plan.limits, mesh_key=mesh_key, pages=self._page
        )
        pem = self._pem = self._certificate()
        places = [address for text in plan.listen for address in listen_addresses(text, "listen")]
        sockets: list[socket.socket] = []
        self._rooms.callback(_close_all, sockets)
        sockets += [listen_on(*address) for address in places]
        http = [listen_on(*at, "http") for at in listen_addresses(plan.http, "http")]
        self._rooms.callback(_close_all, http)
        for name, each in [] if plan.listen else inherited_sockets():
            (http if name == HTTP_NAME else sockets).append(each)
        if plan.listen and has_inherited():
            _log.warning("sockets of systemd are left alone: listen names addresses of its own")
        page = [listen_on(*at, "metrics") for at in listen_addresses(plan.metrics, "metrics", default_host=LOOPBACK)]
        self._rooms.callback(_close_all, page)
        if not sockets:
            raise ConfigError("listen: no address; give one as --listen :443")
        self.server.port = sockets[0].getsockname()[1]
        self.server.run()
        self._rooms.push_async_callback(self.server.aclose)
        try:
            self.server.set_certificate(pem)
        except ValueError as error:
            raise self._files.unfit(error) if self._files else ConfigError(f"cert: {error}") from None
        await self._start_stun()
        if neighbours:
            self.server.join_mesh(neighbours, options)
        for each in sockets:
            self.server.take(each, tls=pem is not None)
        for role, opened in ((Role.HTTP, http), (Role.METRICS, page)):
            for each in opened:
                self.server.take(each, tls=False, role=role)
        self._spawn()
        if self._acme is not None:
            await self._start_acme(self._acme)

    def _spawn(self) -> None:
        """What goes on beside the serving."""
        plan, spawn = self.plan, self.server.scope.spawn
        if self._files is not None:
            spawn(self._watch_certificate(self._files), "certificate")
        if plan.bootstrap_dns:
            spawn(self._bootstrap.keep(), "bootstrap-dns")
        if plan.verify_url and self._gate is not None:
            # Nobody has this key: the answer is no, and that there is none is told now and not to the first client.
            nobody = NodePrivate.generate(self.clock.entropy).public()
            spawn(self._gate.recheck(nobody, LOOPBACK), "verifier")

    def _dial_options(self) -> DialOptions:
        """How neighbours are reached. ConfigError now if the CA file is of no use."""
        options = DialOptions(self.plan.ca_file, plain=self.plan.plain)
        try:
            if self.plan.ca_file:
                options.carried_context_for(RelayNode("any", RegionId(0), ""))
        except RelayError as error:
            raise ConfigError(str(error)) from None
        return options

    async def _admission(self) -> Admit:
        plan = self.plan
        asked: list[Admit] = []
        if plan.verify_url:
            verify = VerifyUrl(plan.verify_url, ca_file=plan.ca_file)
            self._rooms.push_async_callback(verify.aclose)
            asked.append(verify)
        if plan.allow_keys:
            asked.append(KeysFile(Path(plan.allow_keys)))
        if plan.members is not None:
            asked.append(plan.members)
        if plan.open:
            if asked:
                raise ConfigError("open: anybody may come in, or those who are admitted; not both")
            return allow_everybody
        if not asked:
            raise ConfigError(
                "who may use the relay? Give --verify-url URL (Headscale's /verify), --allow-keys FILE, "
                "or --open for everybody"
            )
        self._gate = Gate(_all_of(asked), clock=self.clock)
        return self._gate

    async def _start_stun(self) -> None:
        for host, port in listen_addresses(self.plan.stun, "stun"):
            self.stun = await StunServer.start(host, port)
            self._rooms.callback(self.stun.close)

    # --- certificate ---

    def _certificate(self) -> bytes | None:
        plan = self.plan
        chosen = [
            name
            for name, on in (
                ("self-signed", plan.self_signed),
                ("cert", plan.cert),
                ("acme", plan.acme),
                ("plain", plan.plain),
            )
            if on
        ]
        if len(chosen) != 1:
            raise ConfigError(
                "TLS: give exactly one of --self-signed, --cert FILE, --acme letsencrypt, or --plain (for development)"
                + (f"; these were given: {', '.join(chosen)}" if chosen else "")
            )
        if plan.plain:
            return None
        if plan.self_signed:
            if not plan.hosts:
                raise ConfigError("host: a self-signed certificate needs a name or address; give --host IP-OR-NAME")
            pem = identity.self_signed(plan.folder, plan.hosts)
            self.pin = identity.pin_of(identity.first_certificate(pem, "it"))
            return pem
        if plan.acme:
            return self._prepare_acme()
        self._files = CertificateFiles(plan.cert, plan.key, plan.hosts)
        return self._files.read()

    def _prepare_acme(self) -> bytes:
        """The kept certificate; before the first there is only one that nobody trusts."""
        plan = self.plan
        if plan.acme != "letsencrypt" and not plan.acme.startswith("https://"):
            raise ConfigError(f"acme: {plan.acme!r} is neither letsencrypt nor the https:// URL of a directory")
        by = plan.acme_by
        if by == "auto":
            by = acme.TLS if plan.http in ("", OFF) else acme.HTTP
        if by == acme.HTTP and plan.http in ("", OFF):
            raise ConfigError("acme_by: http-01 needs plain HTTP; give --http :80, or use tls-alpn-01")
        wish = acme.Wish(
            acme.LETSENCRYPT if plan.acme == "letsencrypt" else plan.acme,
            plan.hosts,
            plan.folder,
            by,
            plan.acme_email,
            plan.ca_file,
        )
        self._acme = Acme(wish, present=self._present, clock=self.clock)
        self._kept = self._acme.kept()
        return self._kept or identity.make_self_signed(plan.hosts)

    async def _start_acme(self, asked: Acme) -> None:
        if self._kept is None:
            self._use(await asked.obtain())
        assert self._pem is not None
        self.server.scope.spawn(asked.renew_for_ever(self._pem, self._use), "acme")

    def _use(self, pem: bytes) -> None:
        self.server.set_certificate(pem)
        self._pem = pem

    def _present(self, proof: bytes) -> None:
        """Show this to an ACME server that asks by TLS; everybody else goes on meeting the certificate."""
        self.server.set_certificate(self._pem, proof)

    async def _watch_certificate(self, files: CertificateFiles) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            self._load_certificate(files, force=False)

    def _load_certificate(self, files: CertificateFiles, *, force: bool) -> None:
        try:
            if force or files.has_changed():
                self._use(files.read())
                _log.info("certificate read again", file=files.chain)
        except (OSError, ConfigError, ValueError) as error:
            _log.warning("the last certificate stays in use", error=str(error))

    # --- pages ---

    def _page(self, request: Request, role: Role) -> Page | None:
        if self._acme is not None and request.path.startswith(acme.TOKEN_PATH):
            proof = self._acme.tokens.get(request.path.removeprefix(acme.TOKEN_PATH))
            return (404, b"not found\n", []) if proof is None else (200, proof, [("Content-Type", "text/plain")])
        if role is Role.HTTP and not self.plan.plain and request.path not in PLAIN_PAGES:
            return 302, b"", [("Location", f"https://{self._authority()}{_printable(request.target)}")]
        if role is Role.METRICS and request.path in METRICS_PAGES:
            return 200, self._metrics().encode(), [("Content-Type", "text/plain; version=0.0.4")]
        if request.path == "/bootstrap-dns":
            self.server.counters["bootstrap_dns_requests"] += 1
            headers = [("Content-Type", "application/json"), ("Connection", "close")]
            return 200, self._bootstrap.page(request.query), headers
        return None

    def _metrics(self) -> str:
        pem = self._pem
        return metrics.render(
            self.server.stats(),
            self.server.counters,
            self.stun.counters if self.stun else {},
            unanswered=self._gate.failures if self._gate is not None else 0,
            started=self._started,
            expires=identity.first_certificate(pem, "it").not_valid_after_utc.timestamp() if pem else None,
        )

    def _authority(self) -> str:
        """Host and port of our https URLs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.server.port == HTTPS_PORT else f"{host}:{self.server.port}"


def _printable(target: str) -> str:
    """A path as a header may carry it."""
    return target if target.startswith("/") and target.isascii() and target.isprintable() else "/"


def _close_all(sockets: list[socket.socket]) -> None:
    """Those that were handed over are closed already."""
    for each in sockets:
        each.close()


def _all_of(asked: Sequence[Admit]) -> Admit:
    async def admit(key: Any, source: str) -> bool:
        for each in asked:
            if not await each(key, source):
                return False
        return True

    return admit


def _neighbour(text: str, number: int) -> RelayNode:
    host, port = parse_target(text, "mesh", 0)
    return RelayNode(f"mesh{number}", RegionId(0), host, port=port)
