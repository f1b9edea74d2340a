"""The services on gRPC, and etcd's HTTP side (/health, /version, /metrics) beside it.

gRPC and HTTP cannot share a port here (grpc takes the whole listener), so /health and the others are on `--listen-client-http-urls` and
`--listen-metrics-urls`, as etcd 3.6 can have them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
from cryptography import x509
from cryptography.x509.oid import NameOID

from fastkube.runtime import logs
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.etcd import errors, messages
from fastkube.store.etcd.auth import Auth
from fastkube.store.etcd.cluster import Cluster, Maintenance
from fastkube.store.etcd.errors import EtcdError, ListenError
from fastkube.store.etcd.kv import KV
from fastkube.store.etcd.lease import Lease
from fastkube.store.etcd.locks import Election, Lock, Queue
from fastkube.store.etcd.member import Member, Options, Tls
from fastkube.store.etcd.watch import Watch
from fastkube.store.interface import StoreError

GRPC_OVERHEAD_BYTES = 512 << 10
STREAMS_MAX = 100_000  # of one connection
GRACE_SECONDS = 1.0
CERTIFICATES_MAX = 10_000  # whose organization is remembered

log = logs.get("etcd")


class GrpcCaller:
    """auth.Caller of one call."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    def token(self) -> str:
        for name, value in self._context.invocation_metadata() or ():
            if name in ("token", "authorization"):
                return value if isinstance(value, str) else value.decode(errors="replace")
        return ""

    def common_name(self) -> str:
        names = self._context.auth_context().get("x509_common_name") or ()
        return next(iter(names), b"").decode(errors="replace")


class Admission:
    """Lets in who has a certificate of one organization: where others hold certificates of the same authority too."""

    def __init__(self, organization: str) -> None:
        self._organization = organization
        self._known: dict[bytes, bool] = {}  # PEM ->

    def admits(self, context: Any) -> bool:
        pem = next(iter(context.auth_context().get("x509_pem_cert") or ()), b"")
        known = self._known.get(pem)
        if known is None:
            if len(self._known) >= CERTIFICATES_MAX:
                self._known.clear()
            known = self._known[pem] = bool(pem) and self._organization in _organizations(pem)
        return known


def _organizations(pem: bytes) -> list[str | bytes]:
    return [attribute.value for attribute in x509.load_pem_x509_certificate(pem).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]


class EtcdServer:
    """etcd's API of one store. The store is the caller's to start and close."""

    def __init__(self, store: EmbeddedStore, options: Options, state: Path | None) -> None:
        """`state`: of the file that keeps ids, alarms, users and roles. Raises ValueError, OSError."""
        self.member = Member(store, options, state)
        self.auth = Auth(self.member)
        self.counts: dict[tuple[str, str], int] = {}  # (method, code) -> calls ended
        queue = Queue(self.member, self.auth)
        self.watch = Watch(self.member, self.auth)
        self._services: dict[str, Any] = {
            "etcdserverpb.KV": KV(self.member, self.auth),
            "etcdserverpb.Watch": self.watch,
            "etcdserverpb.Lease": Lease(self.member, self.auth),
            "etcdserverpb.Cluster": Cluster(self.member, self.auth),
            "etcdserverpb.Maintenance": Maintenance(self.member, self.auth),
            "etcdserverpb.Auth": self.auth,
            "v3lockpb.Lock": Lock(queue),
            "v3electionpb.Election": Election(queue),
        }
        self._server: Any = None
        self._admission: Admission | None = None

    async def listen(self, urls: Sequence[str], tls: Tls | None) -> list[int]:
        """Serve on http://HOST:PORT and https://HOST:PORT (port 0: any) -> the ports. Raises ListenError."""
        self._admission = Admission(tls.organization) if tls is not None and tls.organization else None
        limit = self.member.options.request_bytes_max + GRPC_OVERHEAD_BYTES
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", STREAMS_MAX),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),
            ]
        )
        for name, service in self._services.items():
            handlers = {m: self._handler(name, m, getattr(service, m), *rest) for m, *rest in messages.methods(name)}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        ports = [self._bind(url, tls) for url in urls]
        await self._server.start()
        log.info("serving etcd's API", urls=list(urls), member=f"{self.member.state.member_id:x}")
        return ports

    def _bind(self, url: str, tls: Tls | None) -> int:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.port is None or parts.hostname is None:
            raise ListenError(f"{url} is no URL to listen on (write it as https://127.0.0.1:2379)")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        address = f"{host}:{parts.port}"
        try:
            if parts.scheme == "http":
                return self._server.add_insecure_port(address)
            if tls is None:
                raise ListenError(f"{url} needs a certificate and its key")
            ca = tls.trusted_ca.read_bytes() if tls.trusted_ca else None
            if tls.client_cert_auth and ca is None:
                raise ListenError("client certificates are required, but nobody is trusted to sign them")
            credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.cert.read_bytes())], ca, tls.client_cert_auth)
            return self._server.add_secure_port(address, credentials)
        except (RuntimeError, OSError) as e:
            raise ListenError(f"cannot listen on {url}: {e}") from e

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)

    def _handler(self, service: str, method: str, call: Callable[..., Any], request: Any, response: Any, requests_stream: bool, answers_stream: bool) -> Any:
        name = f"/{service}/{method}"
        if answers_stream:
            handler = self._streaming(name, call, requests_stream)
            make = grpc.stream_stream_rpc_method_handler if requests_stream else grpc.unary_stream_rpc_method_handler
        else:
            handler, make = self._unary(name, call), grpc.unary_unary_rpc_method_handler
        return make(handler, request_deserializer=request.FromString, response_serializer=_serialize)

    def _unary(self, name: str, call: Callable[..., Awaitable[Any]]) -> Any:
        counts = self.counts
        done = (name, "OK")

        async def handle(request: Any, context: Any) -> Any:
            try:
                if self._admission is not None and not self._admission.admits(context):
                    raise errors.PERMISSION_DENIED
                answer = await call(request, GrpcCaller(context))
            except (EtcdError, StoreError) as e:
                await self._refuse(name, context, e)
            else:
                counts[done] = counts.get(done, 0) + 1
                return answer

        return handle

    def _streaming(self, name: str, call: Callable[..., Awaitable[None]], requests_stream: bool) -> Any:
        async def handle(request: Any, context: Any) -> None:
            try:
                if self._admission is not None and not self._admission.admits(context):
                    raise errors.PERMISSION_DENIED
                await call(request if requests_stream else _once(request), context.write, GrpcCaller(context))
            except (EtcdError, StoreError) as e:
                await self._refuse(name, context, e)
            else:
                self.counts[name, "OK"] = self.counts.get((name, "OK"), 0) + 1

        return handle

    async def _refuse(self, name: str, context: Any, e: EtcdError | StoreError) -> None:
        refusal = errors.of(e) if isinstance(e, StoreError) else e
        self.counts[name, refusal.code] = self.counts.get((name, refusal.code), 0) + 1
        await context.abort(getattr(grpc.StatusCode, refusal.code), refusal.text)


async def _once(request: Any) -> AsyncIterator[Any]:
    yield request


def _serialize(answer: Any) -> bytes:
    return answer if type(answer) is bytes else answer.SerializeToString()


async def auto_compact(store: EmbeddedStore, revisions: int, interval_seconds: float) -> None:
    """etcd's --auto-compaction-mode=revision: keep the newest `revisions`."""
    while True:
        await asyncio.sleep(interval_seconds)
        target = store.revision - revisions
        if target > store.compacted:
            await store.compact(target)
