"""The capability server over HTTP: GET /health, GET /capabilities, POST /exec.

An /exec passes these gates in order, each with its answer: method 405, bearer token 401 (before a byte
of the body is read), rate 429, size 413, JSON 400, capability 404, values 400, place to run 503. Then
the command runs and its outcome is the answer. Only paths are logged, never queries, bodies or tokens.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import Any, Final, Self

from aiohttp import web

from meshnode.base import bounds
from meshnode.run.log import get_logger
from meshnode.run.scope import Scope
from meshnode.serve.access import Rate, Tokens
from meshnode.serve.ingress import Identify
from meshnode.serve.jobs import Outcome, run_command
from meshnode.serve.sites import PLAIN
from meshnode.serve.spec import Capability, ParamError, Spec

FAILURES_PER_MINUTE: Final = 10
"""Wrong tokens of one address; beyond, even the comparison is withheld."""
BODY_S: Final = 30.0
QUEUE_S: Final = 30.0
"""Longest wait for a place to run."""
BUSY_RETRY_S: Final = 5

_log = get_logger("capability")


class Busy(Exception):
    """No place to run, and none to wait."""


class _Places:
    """A bounded number of runs, and of runs waiting."""

    def __init__(self, running: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._room = waiting

    async def __aenter__(self) -> Self:
        if self._slots.locked():
            if self._room <= 0:
                raise Busy
            self._room -= 1
            try:
                async with asyncio.timeout(QUEUE_S):
                    await self._slots.acquire()
            except TimeoutError:
                raise Busy from None
            finally:
                self._room += 1
        else:
            await self._slots.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()


class ExecApi:
    """The handler of one capability server; enter it to use it."""

    def __init__(self, spec: Spec, tokens: Tokens, identify: Identify) -> None:
        self._spec = spec
        self._tokens = tokens
        self._identify = identify
        self._scope: Scope
        self._rate = Rate(spec.rate, spec.rate_window_s)
        self._failures = Rate(FAILURES_PER_MINUTE, 60.0)
        self._all = _Places(spec.concurrency, sum(c.queue for c in spec.capabilities.values()))
        self._each = {c.name: _Places(c.concurrency, c.queue) for c in spec.capabilities.values()}

    async def __aenter__(self) -> Self:
        self._scope = Scope("exec")
        return self

    async def __aexit__(self, *_: object) -> None:
        # Connections may be gone already: what still runs is ended here, and waited for.
        await self._scope.aclose()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        routes = {
            "/health": ("GET", self._health),
            "/capabilities": ("GET", self._list),
            "/exec": ("POST", self._exec),
        }
        if path not in routes:
            response = _answer(404, {"error": "Not found"})
        else:
            method, handler = routes[path]
            is_right = request.method == method or (method == "GET" and request.method == "HEAD")
            if is_right:
                response = await handler(request)
            else:
                response = _answer(405, {"error": f"Use {method}"}, Allow=method)
        _log.info("request", path=path, method=request.method, status=response.status, peer=self._who(request))
        if response.status >= 400 and request.can_read_body and not request.content.is_eof():
            # Nobody reads the rest of this body, so the connection cannot carry another request.
            response.force_close()
        return response

    def _who(self, request: web.BaseRequest) -> str:
        identity = self._identify(request.remote) if request.remote else None
        return identity.name if identity is not None else request.remote or "?"

    # --- the three questions ---

    async def _health(self, request: web.BaseRequest) -> web.Response:
        missing = {c.name: tool for c in self._spec.capabilities.values() if (tool := _missing_tool(c))}
        usable = [name for name in self._spec.capabilities if name not in missing]
        if not missing:
            return _answer(200, {"status": "ok", "capabilities": usable})
        reasons = [f"{name}: {tool} is not installed" for name, tool in missing.items()]
        return _answer(503, {"status": "degraded", "capabilities": usable, "reasons": reasons})

    async def _list(self, request: web.BaseRequest) -> web.Response:
        refusal, _ = self._authorize(request)
        if refusal is not None:
            return refusal
        found = {
            c.name: {"description": c.description, "params": {p.name: p.describe() for p in c.params.values()}}
            for c in self._spec.capabilities.values()
        }
        return _answer(200, {"capabilities": found})

    async def _exec(self, request: web.BaseRequest) -> web.Response:
        refusal, token = self._authorize(request)
        if refusal is not None:
            return refusal
        caller, now = (token, request.remote), asyncio.get_running_loop().time()
        if wait_s := self._rate.wait_s(caller, now):
            return _too_many(wait_s)
        self._rate.add(caller, now)
        body = await _read_json(request)
        if isinstance(body, web.Response):
            return body
        return await self._run(request, body)

    def _authorize(self, request: web.BaseRequest) -> tuple[web.Response | None, int | None]:
        """(the refusal or None, which token). Reads nothing but one header."""
        now = asyncio.get_running_loop().time()
        if wait_s := self._failures.wait_s(request.remote, now):
            return _too_many(wait_s), None
        headers = request.headers.getall("Authorization", [])
        token = self._tokens.check(headers[0] if len(headers) == 1 else None)
        if token is None:
            self._failures.add(request.remote, now)
            return _answer(401, {"error": "Unauthorized"}, **{"WWW-Authenticate": "Bearer"}), None
        return None, token

    async def _run(self, request: web.BaseRequest, body: dict[str, Any]) -> web.Response:
        known = self._spec.capabilities
        name = body.pop("capability", next(iter(known)) if len(known) == 1 else None)
        capability = known.get(name) if isinstance(name, str) else None
        if capability is None:
            return _answer(404, {"error": "Unknown capability", "capabilities": list(known)})
        values = body.pop("params", {}) if "params" in body else body
        try:
            if not isinstance(values, dict) or (values is not body and body):
                raise ParamError("params must be an object, and nothing stands beside it", "params")
            argv = capability.command(values)
        except ParamError as error:
            about = {"error": str(error), "param": error.param}
            return _answer(400, about | ({"allowed": list(error.allowed)} if error.allowed else {}))
        if tool := _missing_tool(capability):
            return _answer(503, {"error": "Capability unavailable", "reason": f"{tool} is not installed"})
        try:
            async with self._each[capability.name], self._all:
                outcome = await self._scope.spawn(_attempt(capability, argv), capability.name)
            if isinstance(outcome, OSError):
                raise outcome
        except Busy:
            return _answer(503, {"error": "Busy", "capability": capability.name}, **{"Retry-After": str(BUSY_RETRY_S)})
        except OSError as error:
            _log.error("cannot start", capability=capability.name, error=error.strerror or str(error))
            return _answer(500, {"error": "The command could not be started", "capability": capability.name})
        _log.info(
            "ran",
            capability=capability.name,
            exit_code=outcome.exit_code,
            ms=outcome.duration_ms,
            peer=self._who(request),
        )
        return _answer(504 if outcome.timed_out else 200, _describe(capability, outcome))


async def _attempt(capability: Capability, argv: list[str]) -> Outcome | OSError:
    """The outcome, or why there is none, as a value: it is the caller's answer, not a bug of the scope's."""
    try:
        return await run_command(
            argv, env=capability.env, timeout_s=capability.timeout_s, output_max=capability.output_max
        )
    except OSError as error:
        return error


def _describe(capability: Capability, outcome: Outcome) -> dict[str, Any]:
    about: dict[str, Any] = {"error": "Timed out"} if outcome.timed_out else {}
    return about | {
        "capability": capability.name,
        "exit_code": outcome.exit_code,
        "stdout": outcome.stdout.decode("utf-8", "replace"),
        "stderr": outcome.stderr.decode("utf-8", "replace"),
        "truncated": outcome.truncated,
        "duration_ms": outcome.duration_ms,
    }


def _missing_tool(capability: Capability) -> str:
    return next((tool for tool in capability.requires if shutil.which(tool) is None), "")


async def _read_json(request: web.BaseRequest) -> dict[str, Any] | web.Response:
    """The body as an object, whatever its Content-Type claims; or the refusal."""
    too_large = {"error": "Request body too large", "limit": bounds.EXEC_BODY_MAX}
    if request.content_length is not None and request.content_length > bounds.EXEC_BODY_MAX:
        return _answer(413, too_large)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return _answer(415, {"error": "Request bodies are not decompressed here"})
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bounds.EXEC_BODY_MAX:
                    return _answer(413, too_large)
    except TimeoutError:
        return _answer(408, {"error": "Request body did not arrive in time"})
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return _answer(400, {"error": "Request body must be a JSON object"})
    return value


def _too_many(wait_s: float) -> web.Response:
    return _answer(429, {"error": "Rate limit exceeded"}, **{"Retry-After": str(max(1, round(wait_s + 0.5)))})


def _answer(status: int, value: Any, **headers: str) -> web.Response:
    fields = PLAIN | {"Cache-Control": "no-store"} | headers
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return web.Response(status=status, text=text, content_type="application/json", headers=fields)
