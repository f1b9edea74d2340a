"""etcd's HTTP side: /health, /livez, /readyz, /version, /metrics. HTTP/1.1, one request a connection; answers are small."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from fastkube.store.etcd.errors import ListenError
from fastkube.store.etcd.member import CLUSTER_VERSION, NOSPACE, VERSION, Tls
from fastkube.store.etcd.server import EtcdServer

REQUEST_BYTES_MAX = 16 << 10
REQUEST_SECONDS_MAX = 5.0
CONNECTIONS_MAX = 256

Answer = tuple[int, str, str]  # status, content type, body


class HttpSide:
    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._listeners: list[asyncio.Server] = []
        self._open = 0
        self._paths: dict[str, Callable[[], Answer]] = {
            "/health": self._health,
            "/livez": lambda: (200, "text/plain", "ok\n"),
            "/readyz": lambda: (200, "text/plain", "ok\n") if self._server.member.store.failure is None else (503, "text/plain", "not ready\n"),
            "/version": lambda: (200, "application/json", json.dumps({"etcdserver": VERSION, "etcdcluster": CLUSTER_VERSION})),
            "/metrics": lambda: (200, "text/plain; version=0.0.4; charset=utf-8", metrics(self._server)),
        }

    async def listen(self, urls: Sequence[str], tls: Tls | None) -> list[int]:
        """-> the ports. Raises ListenError."""
        ports = []
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or parts.port is None or (parts.scheme == "https" and tls is None):
                raise ListenError(f"{url} is no URL to listen on, or there is no certificate for it")
            try:
                context = _context(tls) if parts.scheme == "https" and tls is not None else None
                listener = await asyncio.start_server(self._serve, parts.hostname, parts.port, ssl=context, limit=REQUEST_BYTES_MAX)
            except (OSError, ssl.SSLError) as e:
                raise ListenError(f"cannot listen on {url}: {e}") from e
            self._listeners.append(listener)
            ports.append(listener.sockets[0].getsockname()[1])
        return ports

    async def close(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS_MAX)
                method, target, *_ = [*head.split(b"\r\n", 1)[0].decode("latin-1").split(" "), "", ""]
                status, kind, body = self._answer(method, target)
                data = body.encode()
                text = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
                writer.write(text.encode() + (b"" if method == "HEAD" else data))
                await asyncio.wait_for(writer.drain(), REQUEST_SECONDS_MAX)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    def _answer(self, method: str, target: str) -> Answer:
        answer = self._paths.get(target.partition("?")[0])
        if answer is None:
            return 404, "text/plain", "404 page not found\n"
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", "Method Not Allowed\n"
        return answer()

    def _health(self) -> Answer:
        member = self._server.member
        if member.store.failure is not None:
            return 503, "application/json", json.dumps({"health": "false", "reason": str(member.store.failure)})
        if any(alarm == NOSPACE for _, alarm in member.state.alarms):
            return 503, "application/json", json.dumps({"health": "false", "reason": "ALARM NOSPACE"})
        return 200, "application/json", json.dumps({"health": "true", "reason": ""})


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.trusted_ca)
    context.load_cert_chain(tls.cert, tls.key)
    if tls.client_cert_auth:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def metrics(server: EtcdServer) -> str:
    """etcd's names, as far as one process has what they count."""
    member = server.member
    store = member.store
    gauges = [
        ("etcd_server_has_leader", "Whether or not a leader exists.", 0 if store.failure else 1),
        ("etcd_server_is_leader", "Whether or not this member is a leader.", 1),
        ("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", member.options.quota_bytes),
        ("etcd_mvcc_db_total_size_in_bytes", "Bytes of all versions in memory.", store.size),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of all versions in memory.", store.size),
        ("etcd_debugging_mvcc_keys_total", "Total number of keys.", store.count(b"\0", b"\0")),
        ("etcd_debugging_mvcc_current_revision", "The current revision of the store.", store.revision),
        ("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in the store.", store.compacted),
        ("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", server.watch.streams),
        ("etcd_debugging_lease_total", "Number of leases.", len(store.leases())),
    ]
    lines = []
    for name, text, value in gauges:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value}"]
    lines += [
        "# HELP etcd_server_version Which version is running.",
        "# TYPE etcd_server_version gauge",
        f'etcd_server_version{{server_version="{VERSION}"}} 1',
    ]
    name = "grpc_server_handled_total"
    lines += [f"# HELP {name} Total number of RPCs completed on the server, regardless of success or failure.", f"# TYPE {name} counter"]
    for (path, code), count in sorted(server.counts.items()):
        _, service, method = path.split("/")
        lines.append(f'{name}{{grpc_code="{_go_code(code)}",grpc_method="{method}",grpc_service="{service}"}} {count}')
    return "\n".join(lines) + "\n"


def _go_code(code: str) -> str:
    """INVALID_ARGUMENT -> InvalidArgument, as grpc-go calls it."""
    return "OK" if code == "OK" else code.title().replace("_", "")
