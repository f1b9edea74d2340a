"""Requests that end elsewhere: logs, exec, attach, port-forward and the proxies go on to a node agent, a pod or a service.

The API server has authorized the request; it speaks to the node agent with its own client certificate and never hands on the caller's credentials.
An ordinary answer is streamed through as it comes. A request for another protocol (WebSocket, SPDY/3.1) is sent on with its own handshake headers; when
the node agent answers 101, bytes pass unread both ways until one side ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httptools

from fastkube.api import errors, resources
from fastkube.api.errors import ApiError, bad_request
from fastkube.http.message import Answer, Request, Response, Upgrade
from fastkube.runtime import entropy
from fastkube.server.config import Config
from fastkube.server.reader import Object, Reader

KUBELET_PORT_DEFAULT = 10250
HEAD_BYTES_MAX = 64 * 1024
HEAD_SECONDS_MAX = 60  # until the other side begins to answer
READ_BYTES = 64 * 1024
BUFFER_BYTES_MAX = 256 * 1024  # of the other side's bytes, unread by us
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"

PODS, NODES, SERVICES, SLICES = (resources.parse(t) for t in ("v1/pods", "v1/nodes", "v1/services", "discovery.k8s.io/v1/endpointslices"))

_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
}
_CREDENTIALS = ("authorization", "cookie", "impersonate-", "x-remote-")


@dataclass(slots=True)
class Target:
    """Where a request goes: `host` and `port`, TLS or not, and what of the path and query the other side sees."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None = None
    server_hostname: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # further ones, of ours


class Streaming:
    def __init__(self, config: Config, reader: Reader) -> None:
        """Raises ValueError when the kubelet client certificate cannot be used."""
        self._reader = reader
        self._config = config
        self._kubelet_tls = self._context()
        self._insecure_tls = ssl.create_default_context()
        self._insecure_tls.check_hostname = False
        self._insecure_tls.verify_mode = ssl.CERT_NONE

    def _context(self) -> ssl.SSLContext:
        config = self._config
        context = ssl.create_default_context(cafile=str(config.kubelet_certificate_authority) if config.kubelet_certificate_authority else None)
        if config.kubelet_certificate_authority is None:  # as upstream: without an authority the kubelet is not verified
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if config.kubelet_client is not None:
            try:
                context.load_cert_chain(config.kubelet_client.cert, config.kubelet_client.key)
            except (OSError, ssl.SSLError) as e:
                raise ValueError(f"cannot use the kubelet client certificate {config.kubelet_client.cert}: {e}") from e
        return context

    # ---- what the subresources are

    def log(self, request: Request) -> Any:
        pod = self._pod(request)
        options = [(k, v) for k, v in request.query if k not in ("container", "pretty")]
        container = self._container(pod, request.param("container"))
        node = self._node_of(pod)
        if not node:
            return Response(200, b"", "text/plain")  # not scheduled: nothing was said yet
        path = f"/containerLogs/{pod['metadata']['namespace']}/{pod['metadata']['name']}/{container}"
        return self.forward(request, self._kubelet(node, _with_query(path, options)), log_errors=True)

    def exec(self, request: Request) -> Any:
        return self._session(request, "exec", ("stdin", "stdout", "stderr", "tty", "command"))

    def attach(self, request: Request) -> Any:
        return self._session(request, "attach", ("stdin", "stdout", "stderr", "tty"))

    def portforward(self, request: Request) -> Any:
        pod = self._pod(request)
        path = f"/portForward/{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        return self.forward(request, self._kubelet(self._scheduled(pod), _with_query(path, [p for p in request.query if p[0] == "ports"])), upgrade_only=True)

    def _session(self, request: Request, kind: str, known: tuple[str, ...]) -> Any:
        pod = self._pod(request)
        container = self._container(pod, request.param("container"))
        names = {"stdin": "input", "stdout": "output", "stderr": "error"}
        options = [(names.get(k, k), v if k == "command" else "1") for k, v in request.query if k in known and (k == "command" or v in ("true", "1"))]
        if kind == "exec" and not any(k == "command" for k, _ in options):
            raise bad_request("you must specify at least 1 command for the container")
        if not any(k in ("input", "output", "error") for k, _ in options):
            raise bad_request("you must specify at least one of stdin, stdout, stderr")
        path = f"/{kind}/{pod['metadata']['namespace']}/{pod['metadata']['name']}/{container}"
        return self.forward(request, self._kubelet(self._scheduled(pod), _with_query(path, options)), upgrade_only=True)

    def pod_proxy(self, request: Request) -> Any:
        scheme, name, port = _split_name(request.info.name)
        pod = self._reader.get(PODS, request.info.namespace, name)
        if pod is None:
            raise errors.not_found("pods", "", name)
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            raise ApiError(503, "ServiceUnavailable", "no endpoints available: the pod has no address")
        number = _pod_port(pod, port)
        return self.forward(request, Target(address, number, _tail(request), self._insecure_tls if scheme == "https" else None))

    def service_proxy(self, request: Request) -> Any:
        scheme, name, port = _split_name(request.info.name)
        service = self._reader.get(SERVICES, request.info.namespace, name)
        if service is None:
            raise errors.not_found("services", "", name)
        host, number = self._endpoint(service, port)
        return self.forward(request, Target(host, number, _tail(request), self._insecure_tls if scheme == "https" else None))

    def node_proxy(self, request: Request) -> Any:
        _, name, port = _split_name(request.info.name)
        target = self._kubelet(name, _tail(request))
        if port and port != str(target.port):
            if not port.isdecimal():
                raise bad_request(f"invalid node port {port!r}")
            target = Target(target.host, int(port), target.path)
        return self.forward(request, target)

    # ---- finding the other side

    def _pod(self, request: Request) -> Object:
        pod = self._reader.get(PODS, request.info.namespace, request.info.name)
        if pod is None:
            raise errors.not_found("pods", "", request.info.name)
        return pod

    @staticmethod
    def _node_of(pod: Object) -> str:
        return pod["spec"].get("nodeName") or ""

    def _scheduled(self, pod: Object) -> str:
        node = self._node_of(pod)
        if not node:
            raise bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
        return node

    @staticmethod
    def _container(pod: Object, asked: str) -> str:
        """The container meant; ApiError 400 when that is not clear or there is none of that name."""
        spec, name = pod["spec"], pod["metadata"]["name"]
        regular = [c["name"] for c in spec.get("containers") or ()]
        initial = [c["name"] for c in spec.get("initContainers") or ()]
        ephemeral = [c["name"] for c in spec.get("ephemeralContainers") or ()]
        if asked:
            if asked not in (*regular, *initial, *ephemeral):
                raise bad_request(f"container {asked} is not valid for pod {name}")
            return asked
        if len(regular) == 1:
            return regular[0]
        preferred: str | None = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
        if preferred and preferred in regular:
            return preferred
        message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(regular)}]"
        if initial:
            message += f" or one of the init containers: [{' '.join(initial)}]"
        raise bad_request(message)

    def _kubelet(self, name: str, path: str) -> Target:
        """A node's agent. ApiError 404, 503."""
        node = self._reader.get(NODES, None, name)
        if node is None:
            raise errors.not_found("nodes", "", name)
        status = node.get("status") or {}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port") or KUBELET_PORT_DEFAULT
        addresses = status.get("addresses") or ()
        for kind in self._config.kubelet_preferred_address_types:
            for address in addresses:
                if address.get("type") == kind and address.get("address"):
                    return Target(address["address"], port, path, self._kubelet_tls, address["address"])
        raise ApiError(503, "ServiceUnavailable", f"no preferred addresses found; known addresses: {[a.get('address') for a in addresses]}")

    def _endpoint(self, service: Object, port: str) -> tuple[str, int]:
        """A ready endpoint of the service's port (named or numbered; the only one when not said), chosen at random. ApiError 503."""
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        ports = service["spec"].get("ports") or []
        wanted = [p for p in ports if port in (p.get("name"), str(p.get("port")))] if port else ports[:1] if len(ports) == 1 else []
        if wanted:
            candidates = []
            for found in self._reader.list(SLICES, namespace):
                if (found["metadata"].get("labels") or {}).get("kubernetes.io/service-name") != name:
                    continue
                numbers = [p.get("port") for p in found.get("ports") or () if (p.get("name") or "") == (wanted[0].get("name") or "")]
                for endpoint in found.get("endpoints") or ():
                    if (endpoint.get("conditions") or {}).get("ready", True) and numbers and numbers[0]:
                        candidates += [(address, numbers[0]) for address in endpoint.get("addresses") or ()]
            if candidates:
                return entropy.generator().choice(candidates)
        raise ApiError(503, "ServiceUnavailable", f'no endpoints available for service "{name}"', {"kind": "services", "name": name})

    # ---- going there

    async def forward(self, request: Request, target: Target, *, upgrade_only: bool = False, log_errors: bool = False) -> Answer:
        """Send the request on and give back what comes. ApiError 400, 502, 503."""
        upgrade = "upgrade" in request.headers and "upgrade" in request.headers.get("connection", "").lower()
        if upgrade_only and not upgrade:
            raise bad_request("Upgrade request required")
        try:
            async with asyncio.timeout(self._config.kubelet_timeout_seconds):
                reader, writer = await asyncio.open_connection(
                    target.host, target.port, ssl=target.tls, server_hostname=target.server_hostname or None if target.tls else None, limit=BUFFER_BYTES_MAX
                )
        except (OSError, TimeoutError, ssl.SSLError) as e:
            why = f"dial tcp {target.host}:{target.port}: {e or 'timeout'}"
            raise ApiError(
                502 if target.tls is None else 500, "ServiceUnavailable" if target.tls is None else "InternalError", f"error trying to reach the target: {why}"
            ) from e
        far = _FarSide(reader, writer)
        try:
            writer.write(_head(request, target, upgrade) + request.body)
            async with asyncio.timeout(HEAD_SECONDS_MAX):
                await far.head(request.method)
        except (OSError, TimeoutError, ConnectionError, httptools.HttpParserError) as e:
            writer.close()
            raise ApiError(502, "BadGateway", f"the target {target.host}:{target.port} gave no proper answer: {e or 'timeout'}") from e
        except BaseException:
            writer.close()
            raise
        if far.status == 101 and upgrade:
            return Upgrade(far.tunnel, [(k, v) for k, v in far.headers if k.lower() != "connection"])
        headers = [(k, v) for k, v in far.headers if k.lower() not in _HOP_BY_HOP and k.lower() not in ("content-type", "date")]
        content_type = next((v for k, v in far.headers if k.lower() == "content-type"), "")
        if log_errors and far.status >= 400:
            body = b"".join([piece async for piece in far.body()])
            raise _kubelet_error(far.status, body)
        return Response(far.status, far.body(), content_type, headers)


def _kubelet_error(status: int, body: bytes) -> ApiError:
    text = body[:4096].decode(errors="replace").strip()
    reason = {400: "BadRequest", 401: "InternalError", 403: "Forbidden", 404: "NotFound"}.get(status, "InternalError")
    return ApiError(status if status not in (401,) else 500, reason, text or f"the node agent answered {status}")


class _FarSide:
    """A connection to the other side, its answer parsed as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._rest = b""  # behind a 101
        self._complete = False
        self._headed = False
        self._size = 0
        self.status = 0
        self.headers: list[tuple[str, str]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status == 100:
            self.headers.clear()
        else:
            self._headed = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._headed

    async def head(self, method: str) -> None:
        """Read up to the end of the answer's head."""
        while not self._headed:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ConnectionError("the connection was closed")
            self._size += len(data)
            if self._size > HEAD_BYTES_MAX:
                raise ConnectionError("the head of the answer is too long")
            self._feed(data)
        if method == "HEAD":
            self._complete = True

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._rest = data[e.args[0] :]
            self._headed = True
            self.status = self.status or 101

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while True:
                parts, self._parts = self._parts, []
                for part in parts:
                    yield part
                if self._complete:
                    return
                data = await self._reader.read(READ_BYTES)
                if not data:
                    return
                self._feed(data)
        finally:
            self._writer.close()

    async def tunnel(self, stream: Any) -> None:
        """Bytes both ways until either side ends; what is on its way then still arrives."""
        if self._rest:
            stream.write(self._rest)

        async def outward() -> None:
            while data := await stream.read():
                self._writer.write(data)
                await self._writer.drain()
            if self._writer.can_write_eof():
                self._writer.write_eof()
            else:
                self._writer.close()

        async def inward() -> None:
            while data := await self._reader.read(READ_BYTES):
                stream.write(data)
                await stream.drain()

        out = asyncio.create_task(outward(), name="tunnel/outward")
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await inward()
        finally:
            out.cancel()
            await asyncio.gather(out, return_exceptions=True)
            self._writer.close()


def _head(request: Request, target: Target, upgrade: bool) -> bytes:
    """The request's head as the other side is to see it: without credentials, with where it came from."""
    lines = [f"{request.method} {target.path} HTTP/1.1", f"Host: {_authority(target)}"]
    for name, value in request.headers.items():
        if name in _HOP_BY_HOP or name.startswith(_CREDENTIALS):
            continue
        if name == "sec-websocket-protocol":  # a token may hide among the sub-protocols
            value = ", ".join(p for p in (part.strip() for part in value.split(",")) if not p.startswith("base64url.bearer.authorization.k8s.io."))
        lines.append(f"{name}: {value}")
    lines += [f"{name}: {value}" for name, value in target.headers]
    forwarded = request.headers.get("x-forwarded-for")
    lines.append(f"X-Forwarded-For: {forwarded + ', ' if forwarded else ''}{request.remote[0]}")
    if upgrade:
        lines += ["Connection: Upgrade", f"Upgrade: {request.headers['upgrade']}"]
    else:
        lines.append("Connection: close")
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(request.body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _authority(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}"


def _with_query(path: str, options: list[tuple[str, str]]) -> str:
    return quote(path) + ("?" + urlencode(options) if options else "")


def _tail(request: Request) -> str:
    path = quote(request.info.tail or "/", safe="/:@!$&'()*+,;=~-._")
    return path + ("?" + request.raw_query if request.raw_query else "")


def _split_name(text: str) -> tuple[str, str, str]:
    """`[scheme:]name[:port]` -> (scheme, name, port). ApiError 400."""
    parts = text.split(":")
    if len(parts) == 1:
        return "", parts[0], ""
    if len(parts) == 2:
        return ("", parts[0], parts[1])
    if len(parts) == 3 and parts[0] in ("", "http", "https"):
        return parts[0], parts[1], parts[2]
    raise bad_request(f'invalid request "{text}": must be name, name:port or scheme:name:port')


def _pod_port(pod: Object, port: str) -> int:
    """A port of a pod: a number, or the first of its containers when not said. ApiError 400."""
    if port:
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise bad_request(f'invalid pod port "{port}"')
        return int(port)
    for container in pod["spec"].get("containers") or ():
        for declared in container.get("ports") or ():
            if declared.get("containerPort"):
                return declared["containerPort"]
    return 80
