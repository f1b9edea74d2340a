"""The services on the wire: gRPC, and etcd's HTTP pages on the same port (as etcd has them) and on others."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastkube.runtime import logs
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.etcd import messages
from fastkube.store.etcd.auth import Auth
from fastkube.store.etcd.cluster import Cluster, Maintenance
from fastkube.store.etcd.errors import ListenError
from fastkube.store.etcd.h2 import Connection, Handlers, Method
from fastkube.store.etcd.http import Pages
from fastkube.store.etcd.kv import KV
from fastkube.store.etcd.lease import Lease
from fastkube.store.etcd.locks import Election, Lock, Queue
from fastkube.store.etcd.member import Member, Options, Tls
from fastkube.store.etcd.watch import Watch

GRPC_OVERHEAD_BYTES = 512 << 10  # what a gRPC message may have beyond --max-request-bytes

log = logs.get("etcd")


class EtcdServer:
    """etcd's API of one store. The store is the caller's to start and close."""

    def __init__(self, store: EmbeddedStore, options: Options, state: Path | None) -> None:
        """`state`: of the file that keeps ids, alarms, users and roles. Raises ValueError, OSError."""
        self.member = Member(store, options, state)
        self.auth = Auth(self.member)
        self.counts: dict[tuple[str, str], int] = {}  # (method, code) -> calls ended
        self.watch = Watch(self.member, self.auth)
        queue = Queue(self.member, self.auth)
        services: dict[str, Any] = {
            "etcdserverpb.KV": KV(self.member, self.auth),
            "etcdserverpb.Watch": self.watch,
            "etcdserverpb.Lease": Lease(self.member, self.auth),
            "etcdserverpb.Cluster": Cluster(self.member, self.auth),
            "etcdserverpb.Maintenance": Maintenance(self.member, self.auth),
            "etcdserverpb.Auth": self.auth,
            "v3lockpb.Lock": Lock(queue),
            "v3electionpb.Election": Election(queue),
        }
        self._methods: dict[bytes, Method] = {}
        for name, service in services.items():
            for method, request, _, requests_stream, answers_stream in messages.methods(name):
                path = f"/{name}/{method}"
                self._methods[path.encode()] = Method(getattr(service, method), request.FromString, path, requests_stream, answers_stream)
        self._pages = Pages(self)
        self._listeners: list[asyncio.Server] = []
        self._connections: set[Connection] = set()

    async def listen(self, urls: Sequence[str], tls: Tls | None, *, pages_only: bool = False) -> list[int]:
        """Serve on http://HOST:PORT and https://HOST:PORT (port 0: any) -> the ports. Raises ListenError."""
        organization = tls.organization if tls is not None else ""
        handlers = Handlers(
            methods={} if pages_only else self._methods,
            http=self._pages.answer,
            admits=lambda certificate: (
                not organization or ("organizationName", organization) in [pair for rdn in certificate.get("subject", ()) for pair in rdn]
            ),
            ended=self._ended,
            request_bytes_max=self.member.options.request_bytes_max + GRPC_OVERHEAD_BYTES,
        )
        ports = []
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or parts.port is None or parts.hostname is None:
                raise ListenError(f"{url} is no URL to listen on (write it as https://127.0.0.1:2379)")
            try:
                context = _context(url, tls) if parts.scheme == "https" else None
                listener = await asyncio.get_running_loop().create_server(
                    lambda: Connection(handlers, self._connections), parts.hostname, parts.port, ssl=context, backlog=1024
                )
            except (OSError, ssl.SSLError) as e:
                raise ListenError(f"cannot listen on {url}: {e}") from e
            self._listeners.append(listener)
            ports.append(listener.sockets[0].getsockname()[1])
        if urls and not pages_only:
            log.info("serving etcd's API", urls=list(urls), member=f"{self.member.state.member_id:x}")
        return ports

    async def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)

    def _ended(self, method: str, code: str) -> None:
        key = method, code
        self.counts[key] = self.counts.get(key, 0) + 1


def _context(url: str, tls: Tls | None) -> ssl.SSLContext:
    if tls is None:
        raise ListenError(f"{url} needs a certificate and its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if tls.client_cert_auth:
        if tls.trusted_ca is None:
            raise ListenError("client certificates are required, but nobody is trusted to sign them")
        context.load_verify_locations(tls.trusted_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def auto_compact(store: EmbeddedStore, revisions: int, interval_seconds: float) -> None:
    """etcd's --auto-compaction-mode=revision: keep the newest `revisions`."""
    while True:
        await asyncio.sleep(interval_seconds)
        target = store.revision - revisions
        if target > store.compacted:
            await store.compact(target)
