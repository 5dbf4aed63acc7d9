"""Files below one directory, over HTTP: ranges, types, validators, an index or a plain listing.

Nothing outside the directory is ever read: a path is opened without touching what it names, the kernel
is asked where that really is, and only then is it opened to be read. So `..`, absolute and dangling
links and races between look and open end in 404. Names that begin with a dot are hidden
(`.well-known` excepted). Bodies leave by sendfile(2) in slices, so that one big file delays nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import mimetypes
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote, unquote_to_bytes

from aiohttp import web

from meshnode.base.errors import ConfigError
from meshnode.serve.sending import send_file
from meshnode.serve.sites import PLAIN

LISTING_MAX: Final = 10_000
SMALL: Final = 64 * 1024
"""A body up to this size leaves in one write with its head."""
PATH_MAX: Final = 4096


class Files:
    """The handler of one directory. Enter it to open the directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root = -1

    async def __aenter__(self) -> FilesHandler:
        try:
            self._root = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"serve: cannot open the directory {self._path}: {error.strerror}") from None
        return FilesHandler(self._root)

    async def __aexit__(self, *_: object) -> None:
        os.close(self._root)


@dataclass(frozen=True, slots=True)
class Found:
    """An open file or directory that lies below the root. Owns `fd`, an O_PATH descriptor."""

    fd: int
    stat: os.stat_result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def reopen(self, flags: int) -> int:
        """A descriptor to read the very same thing."""
        return os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)


class FilesHandler:
    """Answers requests from the directory behind a descriptor."""

    def __init__(self, root: int) -> None:
        self._root = root

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return plain(405, "only GET and HEAD are served here", Allow="GET, HEAD")
        raw, _, query = request.raw_path.partition("?")
        names = split_path(raw)
        if names is None:
            return plain(404, "not found")
        found = self.find(b"/".join(names) or b".")
        if found is None:
            return plain(404, "not found")
        with found:
            if stat.S_ISREG(found.stat.st_mode):
                if raw.endswith("/"):
                    return plain(404, "not found")
                return await self._send(request, found, names[-1])
            if not raw.endswith("/"):
                # Relative to the request's own path, so that a path of `//host` cannot lead away.
                place = "./" + quote(names[-1]) + "/" + ("?" + query if query else "")
                return plain(301, "this is a directory", Location=place)
            return await self._send_directory(request, found, names)

    def find(self, path: bytes) -> Found | None:
        """What lies at this relative path, if it lies below the root, is a file or a directory and readable."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=self._root)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)) and self._holds(fd):
                return Found(fd, info)
        except OSError:
            pass
        os.close(fd)
        return None

    def _holds(self, fd: int) -> bool:
        root = os.readlink(f"/proc/self/fd/{self._root}".encode())
        place = os.readlink(f"/proc/self/fd/{fd}".encode())
        if place == root:
            return True
        inside = place.startswith(root.rstrip(b"/") + b"/")
        hidden = any(is_hidden(name) for name in place[len(root) :].strip(b"/").split(b"/"))
        return inside and not hidden

    async def _send_directory(self, request: web.BaseRequest, folder: Found, names: list[bytes]) -> web.StreamResponse:
        index = self.find(b"/".join([*names, b"index.html"]))
        if index is not None:
            with index:
                if stat.S_ISREG(index.stat.st_mode):
                    return await self._send(request, index, b"index.html")
        try:
            page = await asyncio.to_thread(listing, folder.reopen(os.O_RDONLY | os.O_DIRECTORY), names)
        except OSError:
            return plain(403, "this directory cannot be read")
        headers = PLAIN | {"Cache-Control": "no-cache", "Content-Security-Policy": "default-src 'none'"}
        return web.Response(text=page, content_type="text/html", charset="utf-8", headers=headers)

    async def _send(self, request: web.BaseRequest, found: Found, name: bytes) -> web.StreamResponse:
        try:
            fd = found.reopen(os.O_RDONLY)
        except OSError:
            return plain(403, "this file cannot be read")
        try:
            # The size that counts is the one of the descriptor we read from.
            return await respond(request, fd, os.fstat(fd), name)
        finally:
            os.close(fd)


async def respond(request: web.BaseRequest, fd: int, info: os.stat_result, name: bytes) -> web.StreamResponse:
    """Answer with (a range of) an open file."""
    etag = f'"{info.st_mtime_ns:x}-{info.st_size:x}"'
    headers = PLAIN | {
        "ETag": etag,
        "Last-Modified": formatdate(info.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
    }
    status = precondition(request.headers, etag, info.st_mtime)
    if status is not None:
        return web.Response(status=status, headers=headers)
    headers["Content-Type"] = content_type(name)
    first, size = 0, info.st_size
    wanted = request.headers.get("Range")
    if wanted is not None and request.method == "GET" and if_range(request.headers, etag, info.st_mtime):
        chosen = parse_range(wanted, size)
        if chosen == UNSATISFIABLE:
            return plain(416, "no such range", **{"Content-Range": f"bytes */{size}"})
        if chosen is not None:
            first, last = chosen
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            return await _stream(request, fd, 206, headers, first, last - first + 1)
    return await _stream(request, fd, 200, headers, first, size)


async def _stream(
    request: web.BaseRequest, fd: int, status: int, headers: dict[str, str], first: int, count: int
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = count
    await response.prepare(request)
    if request.method == "HEAD":
        await response.write_eof()
        return response
    if count <= SMALL:
        await response.write(os.pread(fd, count, first))
    else:
        await send_file(request, response, fd, first, count)
    await response.write_eof()
    return response


UNSATISFIABLE: Final = (-1, -1)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; None: ignore the header; UNSATISFIABLE: 416.

    Several ranges at once are ignored, which RFC 9110 14.2 allows: the whole file answers them.
    """
    unit, _, spec = text.partition("=")
    first, dash, last = spec.strip().partition("-")
    fine = all(not part or (part.isascii() and part.isdigit() and len(part) < 20) for part in (first, last))
    if unit.strip().lower() != "bytes" or not dash or not fine or not (first or last):
        return None
    if not first:
        length = int(last)
        return (max(0, size - length), size - 1) if length and size else UNSATISFIABLE
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return None
    return (start, min(end, size - 1)) if start < size else UNSATISFIABLE


def precondition(headers: Mapping[str, str], etag: str, mtime: float) -> int | None:
    """412 or 304 if a condition of the request says so. Order: RFC 9110 13.2.2."""
    get = headers.get
    if (wanted := get("If-Match")) is not None:
        if not _names(wanted, etag, weak=False):
            return 412
    elif (since := _date(get("If-Unmodified-Since"))) is not None and int(mtime) > since:
        return 412
    if (known := get("If-None-Match")) is not None:
        return 304 if _names(known, etag, weak=True) else None
    if (since := _date(get("If-Modified-Since"))) is not None and int(mtime) <= since:
        return 304
    return None


def if_range(headers: Mapping[str, str], etag: str, mtime: float) -> bool:
    """Whether If-Range lets a range be a range."""
    value = headers.get("If-Range")
    if value is None:
        return True
    if value.startswith('"'):
        return value.strip() == etag
    return _date(value) == int(mtime)


def _names(value: str, etag: str, *, weak: bool) -> bool:
    if value.strip() == "*":
        return True
    tags = [tag.strip() for tag in value.split(",")]
    return etag in ([tag.removeprefix("W/") for tag in tags] if weak else tags)


def _date(value: str | None) -> int | None:
    if not value:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return int(parsedate_to_datetime(value).timestamp())
    return None


def content_type(name: bytes) -> str:
    """The type by the name's ending; text is declared to be UTF-8."""
    guessed, encoding = mimetypes.guess_type(name.decode("utf-8", "replace"))
    if encoding is not None:
        return {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}.get(
            encoding, "application/octet-stream"
        )
    if guessed is None:
        return "application/octet-stream"
    is_text = guessed.startswith("text/") or guessed in ("application/javascript", "application/json")
    return f"{guessed}; charset=utf-8" if is_text else guessed


def split_path(raw: str) -> list[bytes] | None:
    """The names in a request path; None if it can be nobody's: `..`, NUL, an encoded slash, hidden, too long."""
    if len(raw) > PATH_MAX:
        return None
    names = [unquote_to_bytes(part) for part in raw.split("/")]
    names = [name for name in names if name not in (b"", b".")]
    if any(name == b".." or b"\0" in name or b"/" in name or is_hidden(name) for name in names):
        return None
    return names


def is_hidden(name: bytes) -> bool:
    """Whether a name is not for others."""
    return name.startswith(b".") and name != b".well-known"


def listing(fd: int, names: list[bytes]) -> str:
    """A directory as a page; folders first. Closes `fd`."""
    try:
        with os.scandir(fd) as entries:
            rows = []
            for entry in entries:
                if is_hidden(os.fsencode(entry.name)):
                    continue
                rows.append((not entry.is_dir(), os.fsencode(entry.name)))
                if len(rows) >= LISTING_MAX:
                    break
    finally:
        os.close(fd)
    title = html.escape("/" + b"/".join(names).decode("utf-8", "replace"))
    lines = ['<li><a href="../">../</a></li>'] if names else []
    for is_file, name in sorted(rows):
        end = "" if is_file else "/"
        shown = html.escape(name.decode("utf-8", "replace"))
        lines.append(f'<li><a href="./{quote(name)}{end}">{shown}{end}</a></li>')
    body = "\n".join(lines)
    return f"<!doctype html>\n<meta charset=utf-8><title>{title}</title>\n<h1>{title}</h1>\n<ul>\n{body}\n</ul>\n"


def plain(status: int, text: str, **headers: str) -> web.Response:
    """A short answer of our own."""
    return web.Response(status=status, text=text + "\n", headers=PLAIN | headers)
