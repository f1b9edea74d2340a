"""Bytes in, requests out: one connection's side of HTTP/1.1 that has no socket. Parsing is httptools' (llhttp); the bounds are ours.

A client repeats its header lines from request to request. So the header block of a connection's last bodiless request is kept, and a request with
the very same block skips the parser: only its first line is looked at.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import httptools

from fastkube.http.message import BadTarget, Request

HEAD_BYTES_MAX = 64 * 1024

_FRAMING = ("content-length", "transfer-encoding", "upgrade", "expect")


class Refusal(NamedTuple):
    """Why no more requests are taken; `more` says that the peer may still be sending what belongs to the refused one."""

    status: int
    message: str
    more: bool = True


class RequestReader:
    """`feed` bytes; whole requests are in `ready`, in order. After a `refusal` nothing more is read."""

    def __init__(self, peer: Any, remote: tuple[str, int], body_bytes_max: int) -> None:
        self.ready: deque[Request] = deque()
        self.refusal: Refusal | None = None
        self.mid = False  # a request has begun and is not whole
        self.head_done = False
        self.expects = False  # the request begun waits for 100 Continue
        self.rest: bytes | None = None  # what follows a request for another protocol
        self._peer, self._remote = peer, remote
        self._body_bytes_max = body_bytes_max
        self._parser = httptools.HttpRequestParser(self)
        self._head_size = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_size = 0
        self._block = b""  # the header block of the last bodiless request, with the CRLF before and the empty line behind
        self._block_headers: dict[str, str] = {}

    def feed(self, data: bytes) -> None:
        if self._block and not self.mid and data.endswith(self._block) and self._repeat(data):
            return
        fresh = not self.mid
        if not self.head_done:
            self._head_size += len(data)
        waiting = len(self.ready)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self.rest = data[e.args[0] :]
        except httptools.HttpParserError as e:
            self._refuse(400, f"malformed request: {e}")
            return
        if self.mid and not self.head_done and self._head_size > HEAD_BYTES_MAX:
            self._refuse(431, "request header fields too large")
        elif fresh and not self.mid and len(self.ready) == waiting + 1 and data.startswith(b"GET "):
            self._remember(data)

    def _repeat(self, data: bytes) -> bool:
        """A GET whose header block is the last one's: the parser need not see it again. False: it is not such a request."""
        end = len(data) - len(self._block)
        if not data.startswith(b"GET /") or data.find(b"\r\n") != end or data[end - 9 : end] != b" HTTP/1.1":
            return False
        try:
            target = data[4 : end - 9].decode("ascii")
            if " " in target or "#" in target or not target.isprintable():
                return False
            self.ready.append(Request("GET", target, self._block_headers, peer=self._peer, remote=self._remote))
        except (UnicodeDecodeError, BadTarget):
            return False
        return True

    def _remember(self, data: bytes) -> None:
        headers, start = self._headers, data.find(b"\r\n")
        if any(name in headers for name in _FRAMING) or headers.get("connection", "keep-alive").lower() != "keep-alive":
            return
        if data.find(b"\r\n\r\n") == len(data) - 4 and data[start - 9 : start] == b" HTTP/1.1":
            self._block = data[start:]
            self._block_headers = headers

    def _refuse(self, status: int, message: str, more: bool = True) -> None:
        if self.refusal is None:
            self.refusal = Refusal(status, message, more)
            self.mid = False

    def give_up(self, status: int, message: str) -> None:
        """The request begun will not be waited for any longer."""
        self._refuse(status, message)

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        self.mid = True
        self.head_done = self.expects = False
        self._url = b""
        self._headers = {}
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > HEAD_BYTES_MAX:
            self._refuse(414, "request URI too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers = self._headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        self.head_done = True
        self._head_size = 0
        headers = self._headers
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._body_bytes_max:
            self._too_large()
        else:
            self.expects = headers.get("expect", "").lower() == "100-continue" and self._parser.get_http_version() == "1.1"

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._body_bytes_max:
            self._too_large()
        elif self.refusal is None:
            self._body.append(body)

    def _too_large(self) -> None:
        self._refuse(413, f"Request entity too large: limit is {self._body_bytes_max}")

    def on_message_complete(self) -> None:
        self.mid = self.head_done = self.expects = False
        if self.refusal is not None:
            return
        parser, target = self._parser, self._url.decode("latin-1")
        if not target.startswith("/") and "://" in target:
            target = "/" + target.split("://", 1)[1].partition("/")[2]
        target = target.partition("#")[0]
        try:
            if not target.isascii():
                raise BadTarget("the target is not ASCII")
            method, version = parser.get_method().decode("ascii"), parser.get_http_version()
            self.ready.append(Request(method, target, self._headers, b"".join(self._body), peer=self._peer, remote=self._remote, version=version))
        except BadTarget as e:
            self._refuse(400, f"malformed request: {e}", more=False)
