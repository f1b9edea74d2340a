"""How requests reach the API server: HTTPS with a pool of kept connections, or the server's own handler in this process.

Both give the same two calls, so that nothing above knows which one it speaks through:

    await transport.request(method, target, body, headers) -> Answer      the whole answer
    await transport.stream(method, target, body, headers) -> Stream       chunks as they come; its buffer is bounded, a slow
                                                                           reader slows the server's writes, not our memory

An answer of any status is an answer; only a connection that cannot be made or breaks raises (`ConnectionFailed`, an ApiError).
"""

from __future__ import annotations

import inspect
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastkube._version import __version__
from fastkube.api.errors import ApiError
from fastkube.client.http1 import Answer, BrokenConnection, Headers, Pool
from fastkube.client.http1 import Stream as HttpStream
from fastkube.http.message import Request, Response, collect, iterate
from fastkube.runtime import clock, logs

CREDENTIALS_MAX_AGE_SECONDS = 10.0  # how often token and certificate files are looked at again

log = logs.get("client")


class ConnectionFailed(ApiError):
    """No answer: the server cannot be reached, or the connection broke. Whether the request was carried out is unknown."""

    def __init__(self, why: str) -> None:
        super().__init__(503, "ServiceUnavailable", f"cannot reach the API server: {why}")


class Stream(Protocol):
    status: int
    headers: Mapping[str, str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read(self) -> bytes:
        """All that is left."""
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    async def request(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer: ...

    async def stream(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Stream: ...

    async def close(self) -> None: ...


def _in_memory(data: bytes) -> tuple[int, str]:
    """A file without a place on disk: ssl loads keys from paths only."""
    fd = os.memfd_create("fastkube-credential")
    os.write(fd, data)
    return fd, f"/proc/self/fd/{fd}"


class HttpTransport:
    """HTTPS (or plain HTTP) to `server`, a URL. Credentials are file paths or, as bytes, the PEM data itself.

    Files are looked at again every few seconds, so rotated certificates and projected tokens are taken up by the connections made from then on.
    Raises ValueError for credentials that cannot be read.
    """

    def __init__(
        self,
        server: str,
        *,
        ca: str | Path | bytes | None = None,
        cert: str | Path | bytes | None = None,
        key: str | Path | bytes | None = None,
        token: str = "",
        token_file: str | Path | None = None,
        user_agent: str = "",
        insecure_skip_tls_verify: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self._cert, self._key = cert, key
        self._token_file = Path(token_file) if token_file else None
        self._headers = {"User-Agent": user_agent or f"fastkube/{__version__}", "Accept": "application/json"}
        self._ssl = self._context(ca, insecure_skip_tls_verify) if self.server.startswith("https:") else None
        self._pool = Pool(self.server, self._ssl, server_hostname)
        self._read_at = -1e9
        self._cert_mtime = 0.0
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        try:
            self._refresh()
        except (OSError, ssl.SSLError) as e:
            raise ValueError(f"cannot load client credentials: {e}") from e

    def _context(self, ca: str | Path | bytes | None, insecure: bool) -> ssl.SSLContext:
        try:
            if isinstance(ca, bytes):
                context = ssl.create_default_context(cadata=ca.decode())
            else:
                context = ssl.create_default_context(cafile=str(ca) if ca else None)
        except (OSError, ssl.SSLError) as e:
            raise ValueError(f"cannot load the cluster's CA certificate: {e}") from e
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _refresh(self) -> None:
        now = clock.monotonic()
        if now - self._read_at < CREDENTIALS_MAX_AGE_SECONDS:
            return
        self._read_at = now
        if self._token_file:
            self._headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        if self._ssl is None or not self._cert:
            return
        cert, key = self._cert, self._key or self._cert
        if isinstance(cert, bytes) or isinstance(key, bytes):
            if not self._cert_mtime:
                self._load_pem(cert, key)
                self._cert_mtime = 1.0
        elif (mtime := os.stat(cert).st_mtime) != self._cert_mtime:
            self._ssl.load_cert_chain(str(cert), str(key))
            self._cert_mtime = mtime
            self._pool.drop_idle()

    def _load_pem(self, cert: str | Path | bytes, key: str | Path | bytes) -> None:
        assert self._ssl is not None
        opened = []
        try:
            paths = []
            for part in (cert, key):
                if isinstance(part, bytes):
                    fd, path = _in_memory(part)
                    opened.append(fd)
                    paths.append(path)
                else:
                    paths.append(str(part))
            self._ssl.load_cert_chain(*paths)
        finally:
            for fd in opened:
                os.close(fd)

    def _all_headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        try:
            self._refresh()
        except (OSError, ssl.SSLError) as e:
            log.warning("cannot read credentials again, the old ones stay in use", error=str(e))
        return {**self._headers, **headers} if headers else self._headers

    async def request(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        try:
            return await self._pool.request(method, target, self._all_headers(headers), body)
        except BrokenConnection as e:
            raise ConnectionFailed(str(e)) from e

    async def stream(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Stream:
        try:
            return _HttpStream(await self._pool.stream(method, target, self._all_headers(headers), body))
        except BrokenConnection as e:
            raise ConnectionFailed(str(e)) from e

    async def close(self) -> None:
        self._pool.close()


class _HttpStream:
    def __init__(self, stream: HttpStream) -> None:
        self.status = stream.status
        self.headers = stream.headers
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except BrokenConnection as e:
            raise ConnectionFailed(str(e)) from e

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self])

    async def close(self) -> None:
        await self._stream.close()


class BearerTransport:
    """Another transport with a bearer token of one's own; `token()` is asked before each request and caches what it gives."""

    def __init__(self, transport: Transport, token: Callable[[], Awaitable[str]]) -> None:
        self._transport = transport
        self._token = token

    async def _headers(self, headers: Mapping[str, str] | None) -> Mapping[str, str]:
        return {**(headers or {}), "Authorization": f"Bearer {await self._token()}"}

    async def request(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        return await self._transport.request(method, target, body, await self._headers(headers))

    async def stream(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Stream:
        return await self._transport.stream(method, target, body, await self._headers(headers))

    async def close(self) -> None:
        """The connections belong to the transport beneath."""


class InProcessTransport:
    """Straight into the server's `handler` as `user` (already authenticated), through the same pipeline, without sockets."""

    def __init__(self, handler: Callable[[Request], Any], user: Any, *, user_agent: str = "") -> None:
        self._handler = handler
        self._user = user
        self._headers = {"user-agent": user_agent or f"fastkube/{__version__}", "accept": "application/json"}

    async def _respond(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str] | None) -> Response:
        given = {name.lower(): value for name, value in headers.items()} if headers else {}
        request = Request(method, target, {**self._headers, **given}, body or b"")
        request.user = self._user
        response = self._handler(request)
        return await response if inspect.isawaitable(response) else response

    async def request(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        response = await self._respond(method, target, body, headers)
        return Answer(response.status, _headers(response), await collect(response))

    async def stream(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Stream:
        return _InProcessStream(await self._respond(method, target, body, headers))

    async def close(self) -> None:
        pass


class _InProcessStream:
    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = _headers(response)
        self._chunks = iterate(response)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self._chunks])

    async def close(self) -> None:
        await self._chunks.aclose()  # type: ignore[attr-defined]


def _headers(response: Response) -> Headers:
    return Headers({"content-type": response.content_type, **{name.lower(): value for name, value in response.headers}})
