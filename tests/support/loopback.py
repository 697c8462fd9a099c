"""A web server on this machine that misbehaves as told, for tests of downloading."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers by the next entry of the server's script, and as a good server when that is used up."""

    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.guard:
            self.server.requests.append((self.command, self.path, dict(self.headers)))
            act = self.server.script.pop(0) if self.server.script else None
        body = self.server.files.get(self.path)
        if act is not None:
            act(self, body)
        elif body is None:
            self.answer(404, b"no")
        else:
            whole(self, body)

    do_HEAD = do_GET  # noqa: N815 - the library's naming

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client had enough
                self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves `files` (path to bytes). `requests` holds (method, path, headers) of what was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[Callable[[Handler, bytes | None], None]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.guard = threading.Lock()
        self.over = threading.Event()
        self.base = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, _, headers in self.requests]


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def part_of(handler: Handler, body: bytes, *, validators: bool = True) -> tuple[int, bytes, dict[str, str]]:
    """Status, bytes and headers that a good server answers to the request, `Range` and `If-Range` included."""
    headers = {"ETag": etag(body)} if validators else {}
    wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    if wanted and (not condition or condition == headers.get("ETag")):
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return 416, b"", {}
        return 206, body[start:], {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    return 200, body, headers


def whole(handler: Handler, body: bytes | None) -> None:
    handler.answer(*part_of(handler, body or b""))


def unmarked(handler: Handler, body: bytes | None) -> None:
    """A server that resumes, but gives neither ETag nor Last-Modified."""
    handler.answer(*part_of(handler, body or b"", validators=False))


def from_the_start(handler: Handler, body: bytes | None) -> None:
    """A server that knows no ranges."""
    handler.answer(200, body or b"", {"ETag": etag(body or b"")})


def cut(
    after: int, *, ranges: bool = True, validators: bool = True
) -> Callable[[Handler, bytes | None], None]:
    """Promises all and breaks off after so many bytes."""

    def act(handler: Handler, body: bytes | None) -> None:
        if ranges:
            status, rest, headers = part_of(handler, body or b"", validators=validators)
        else:
            status, rest, headers = 200, body or b"", {}
        handler.answer(status, rest[:after], headers, length=len(rest))

    return act


def stall(after: int) -> Callable[[Handler, bytes | None], None]:
    """Sends so many bytes and then nothing more, with the connection open."""

    def act(handler: Handler, body: bytes | None) -> None:
        cut(after)(handler, body)
        handler.wfile.flush()
        handler.server.over.wait(30)

    return act


def status(code: int, headers: dict[str, str] | None = None) -> Callable[[Handler, bytes | None], None]:
    return lambda handler, body: handler.answer(code, b"", headers)


def redirect(to: str, code: int = 302) -> Callable[[Handler, bytes | None], None]:
    return status(code, {"Location": to})
