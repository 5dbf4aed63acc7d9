"""Certificates from an ACME server for a relay's names and addresses: proved by HTTP or by TLS, kept, renewed in time.

The protocol is the `acme` library's, which blocks: it runs in a thread of its own, one order at a time. What proves
control is shown by the relay itself: a token in `tokens` on plain HTTP, or a certificate handed to `present` that
only clients asking for "acme-tls/1" meet. Account and certificate live in the relay's folder; a certificate is renewed
when a third of its life is left, and the old one serves until the new one is there.
Source: RFC 8555, RFC 8737 (TLS-ALPN-01), RFC 8738 (addresses).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnode.base.errors import ConfigError, RelayError, StateError
from meshnode.relay.identity import general_name, make_self_signed, names_of, private_pem, write_secret
from meshnode.run.clock import Clock
from meshnode.run.log import get_logger

LETSENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
HTTP: Final = "http-01"
TLS: Final = "tls-alpn-01"
TOKEN_PATH: Final = "/.well-known/acme-challenge/"
ACCOUNT_FILE: Final = "acme.account.json"
CERTIFICATE_FILE: Final = "acme.pem"
ORDER_S: Final = 120.0
REQUEST_S: Final = 20
RETRY_S: Final = 600.0
LOOK_S: Final = 3600.0
"""How often it is looked at whether a certificate is due."""
PROOF_DAYS: Final = 7
RETRY_MAX_S: Final = 12 * 3600.0
SHORT_LIVED: Final = "shortlived"
"""Let's Encrypt's profile, the only one with addresses."""
_PROOF: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_log = get_logger("derp")


@dataclass(frozen=True, slots=True)
class Wish:
    """What to ask for, of whom."""

    directory: str
    """URL of the ACME server's directory."""
    names: tuple[str, ...]
    """Host names and addresses."""
    folder: Path
    by: str = HTTP
    """HTTP or TLS."""
    email: str = ""
    ca_file: str = ""
    """Authorities to trust for the ACME server itself; '' = the usual ones."""


class Acme:
    """The certificate of one relay. All methods are of the loop's thread."""

    def __init__(self, wish: Wish, *, present: Callable[[bytes], None], clock: Clock) -> None:
        """present: show this certificate (PEM with key) to clients that ask for "acme-tls/1"; b'' = no more.

        ConfigError if the library is not installed, or a name can never be proved.
        """
        _need_library()
        if not wish.names:
            raise ConfigError("host: a certificate needs names or addresses; give them with --host")
        if any(name.startswith("*.") for name in wish.names):
            raise ConfigError("host: a wildcard cannot be proved by HTTP or TLS; name each host")
        self._wish = wish
        self._present = present
        self._clock = clock
        self.tokens: dict[str, bytes] = {}
        """What plain HTTP answers below TOKEN_PATH while an order runs."""

    def kept(self) -> bytes | None:
        """The certificate and key of an earlier run, if it is for these names and not yet over."""
        path = self._wish.folder / CERTIFICATE_FILE
        try:
            pem = path.read_bytes()
            leaf = x509.load_pem_x509_certificate(pem)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"{path} cannot be used: {error}; move it away to get a new certificate") from None
        if self._left_s(leaf) <= 0 or not set(self._wish.names) <= set(names_of(leaf)):
            return None
        return pem

    async def obtain(self) -> bytes:
        """A new certificate and its key, kept. RelayError with what the server said and what to try."""
        try:
            pem = await self._in_thread(self._order)
        finally:
            self.tokens.clear()
            self._present(b"")
        leaf = x509.load_pem_x509_certificate(pem)
        _log.info("certificate obtained", names=",".join(names_of(leaf)), until=f"{leaf.not_valid_after_utc:%F %T}")
        return pem

    async def renew_for_ever(self, pem: bytes, use: Callable[[bytes], None]) -> None:
        """Replace `pem` before it ends; `use` gets each new one.

        The wall clock is looked at again and again: it may be set, and the machine may sleep.
        """
        failures, early_s = 0, self._early_s(pem)
        while True:
            if failures == 0:
                await self._until_due(pem, early_s)
            try:
                pem = await self.obtain()
                use(pem)
                failures, early_s = 0, self._early_s(pem)
            except (RelayError, StateError, ValueError) as error:
                failures += 1
                _log.warning("the certificate could not be renewed; the old one stays in use", error=str(error))
            # Also after a success: to a clock that is far ahead every certificate is due at once.
            pause_s = min(RETRY_MAX_S, RETRY_S * 2 ** max(0, failures - 1))
            await asyncio.sleep(pause_s * self._clock.uniform(0.9, 1.0))

    async def _until_due(self, pem: bytes, early_s: float) -> None:
        while True:
            left_s = self.due_in_s(pem) - early_s
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, LOOK_S))

    def due_in_s(self, pem: bytes) -> float:
        """Seconds until a third of its life is left; 0 = now."""
        leaf = x509.load_pem_x509_certificate(pem)
        life_s = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
        return max(0.0, self._left_s(leaf) - life_s / 3)

    def _early_s(self, pem: bytes) -> float:
        """So that many relays of one start do not all ask at once."""
        return self.due_in_s(pem) * self._clock.uniform(0.0, 0.1)

    def _left_s(self, leaf: x509.Certificate) -> float:
        return leaf.not_valid_after_utc.timestamp() - self._clock.wall()

    # --- in the thread ---

    async def _in_thread(self, work: Callable[[asyncio.AbstractEventLoop], bytes]) -> bytes:
        """A daemon: a server that does not answer must not hold up our end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def settle(result: bytes, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        def run() -> None:
            result, failure = b"", None
            try:
                result = work(loop)
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=run, name="acme", daemon=True).start()
        return await done

    def _order(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """One order from account to certificate, blocking."""
        import requests
        from acme import errors, messages

        try:
            return self._steps(loop)
        except errors.ValidationError as error:
            raise RelayError(self._explain_proof(error)) from None
        except messages.Error as error:
            raise RelayError(f"{self._server} refused: {error.detail or error.description or error.typ}") from None
        except (errors.Error, requests.RequestException, ValueError, KeyError) as error:
            raise RelayError(
                f"no certificate from {self._server}: {_sentence(error)}; is the URL an ACME directory, and reachable?"
            ) from None
        except OSError as error:
            raise StateError(f"cannot keep a certificate in {self._wish.folder}: {error.strerror}") from None

    def _steps(self, loop: asyncio.AbstractEventLoop) -> bytes:
        client, account_key = self._client()
        key = ec.generate_private_key(ec.SECP256R1())
        order = client.new_order(self._request_for(key), profile=self._profile(client))
        for authorization in order.authorizations:
            if authorization.body.status.name != "valid":
                self._prove(loop, client, account_key, authorization)
        # naive local time is what the library compares with
        order = client.poll_and_finalize(order, datetime.now() + timedelta(seconds=ORDER_S))
        chain: str = order.fullchain_pem
        pem = chain.encode() + private_pem(key)
        self._wish.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(self._wish.folder / CERTIFICATE_FILE, pem)
        return pem

    def _client(self) -> tuple[Any, Any]:
        """The library's client, with the account of this folder and server, made at the first time."""
        from acme import client, messages
        from josepy.jwa import ES256
        from josepy.jwk import JWKEC

        path = self._wish.folder / ACCOUNT_FILE
        known: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if known.get("directory") != self._wish.directory:
            known = {}
        key = JWKEC.from_json(known["key"]) if known else JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        net = client.ClientNetwork(
            key,
            alg=ES256,
            verify_ssl=self._wish.ca_file or True,  # type: ignore[arg-type]  # requests takes a file too
            user_agent="meshnode",
            timeout=REQUEST_S,
        )
        found = client.ClientV2(client.ClientV2.get_directory(self._wish.directory, net), net)
        if known:
            net.account = messages.RegistrationResource(uri=known["account"], body=messages.Registration())
            return found, key
        wanted = messages.NewRegistration.from_data(email=self._wish.email or None, terms_of_service_agreed=True)
        account = found.new_account(wanted)
        fields = {"kty": "EC", **key.fields_to_partial_json()}
        record = {"directory": self._wish.directory, "account": account.uri, "key": fields}
        self._wish.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(path, json.dumps(record).encode())
        return found, key

    def _request_for(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        names = x509.SubjectAlternativeName([general_name(name) for name in self._wish.names])
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _profile(self, client: Any) -> str | None:
        meta: Any = getattr(client.directory, "meta", None)
        offered = (meta.profiles if meta is not None else None) or ()
        return SHORT_LIVED if SHORT_LIVED in offered and any(map(_is_address, self._wish.names)) else None

    def _prove(self, loop: asyncio.AbstractEventLoop, client: Any, account_key: Any, authorization: Any) -> None:
        """Show the proof for one name and tell the server to look; it is left standing until the order is over."""
        from acme import challenges

        name, wanted = authorization.body.identifier.value, self._wish.by
        offered = {challenge.chall.to_json()["type"]: challenge for challenge in authorization.body.challenges}
        if wanted not in offered:
            others = ", ".join(sorted(offered)) or "nothing"
            raise RelayError(f"{self._server} does not take {wanted} for {name}; it offers {others}")
        challenge = offered[wanted]
        token = challenge.chall.to_json()["token"]
        response, proof = challenges.HTTP01.from_json({"type": HTTP, "token": token}).response_and_validation(
            account_key
        )
        if wanted == HTTP:
            self.tokens[token] = str(proof).encode()
            client.answer_challenge(challenge, response)
            return
        shown = threading.Event()
        pem = proof_certificate(name, str(proof))

        def show() -> None:
            self._present(pem)
            shown.set()

        loop.call_soon_threadsafe(show)
        if not shown.wait(REQUEST_S):
            raise RelayError("the relay is too busy to show its proof")
        client.answer_challenge(challenge, response)
        self._wait_for(client, authorization)

    def _wait_for(self, client: Any, authorization: Any) -> None:
        """One proof by TLS at a time: there is one certificate to show."""
        import time

        from acme import errors

        deadline = time.monotonic() + ORDER_S
        while time.monotonic() < deadline:
            now, _ = client.poll(authorization)
            if now.body.status.name == "valid":
                return
            if now.body.status.name != "pending":
                raise errors.ValidationError([now])
            time.sleep(0.5)
        raise errors.TimeoutError()

    # --- words ---

    @property
    def _server(self) -> str:
        return self._wish.directory.partition("//")[2].partition("/")[0]

    def _explain_proof(self, error: Any) -> str:
        said = [
            f"{authorization.body.identifier.value}: {challenge.error.detail or challenge.error.typ}"
            for authorization in error.failed_authzrs
            for challenge in authorization.body.challenges
            if challenge.error is not None
        ]
        port = "port 80 (--http :80)" if self._wish.by == HTTP else "port 443 (--listen :443)"
        return f"{self._server} could not verify {'; '.join(said)}; {port} of these names must lead to this relay"


def proof_certificate(name: str, key_authorization: str) -> bytes:
    """A self-signed certificate that proves control by TLS, with its key, as PEM (RFC 8737 3, RFC 8738 6)."""
    digest = hashlib.sha256(key_authorization.encode()).digest()
    return make_self_signed([name], days=PROOF_DAYS, proof=x509.UnrecognizedExtension(_PROOF, b"\x04\x20" + digest))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _sentence(error: BaseException) -> str:
    """The reason out of an error of the library, or of the HTTP library below it, whose texts are long."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted; if its authority is your own, name it with --ca-file"
    if (reason := re.search(r"\[Errno -?\d+\] ([^\"')]+)", text)) is not None:
        return reason.group(1).lower()
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]


def _need_library() -> None:
    try:
        import acme.client  # noqa: F401
    except ImportError:
        raise ConfigError("acme: the acme library is not installed; pip install 'meshnode[acme]'") from None
