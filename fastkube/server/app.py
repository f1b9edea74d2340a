"""`ApiServer`: the parts put together, and what each request goes to.

    server = ApiServer(config, store); await server.start(); ... await server.close()

`server.handle(request)` is the pipeline itself: the HTTP server's handler, and the target of transports in this process.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from fastkube import _version
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.http.message import Answer, Request, Response, render_headers
from fastkube.http.server import Server
from fastkube.http.tls import server_context
from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor
from fastkube.server import admission, allocators, audit, authn, authz, bootstrap
from fastkube.server.aggregation import Aggregation
from fastkube.server.authn.reviews import Reviews as Identities
from fastkube.server.authz.reviews import Reviews as Permissions
from fastkube.server.config import Config, StartError
from fastkube.server.customresources import CustomResources
from fastkube.server.discovery import Discovery
from fastkube.server.fairness import Fairness
from fastkube.server.handlers import read, subresources, write
from fastkube.server.handlers.negotiation import JSON, content_type
from fastkube.server.handlers.watch import Watching, watch
from fastkube.server.health import Health
from fastkube.server.metrics import Gauge, Metrics
from fastkube.server.openapi import OpenApi
from fastkube.server.pipeline import Pipeline
from fastkube.server.reader import StoreReader
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.registry.expiry import Expiry
from fastkube.server.registry.indexes import Indexes
from fastkube.server.registry.objects import Call, DeleteOptions, Object, Objects
from fastkube.server.request import RequestInfo, User
from fastkube.server.routing import Resources
from fastkube.server.streaming import Streaming
from fastkube.store.interface import Store

SERVER = User("system:apiserver", ("system:masters", "system:authenticated"))
REVIEW_GROUPS = {"authentication.k8s.io", "authorization.k8s.io"}

log = logs.get("apiserver")


class ServerWriter:
    """The server's own writes (server.writer.Writer)."""

    def __init__(self, app: ApiServer) -> None:
        self._app = app

    def _call(self, resource: Resource, obj: Object) -> Call:
        meta = obj["metadata"]
        return Call(self._app.endpoint(resource), SERVER, meta.get("namespace") or "", meta.get("name") or "", manager="kube-apiserver")

    async def create(self, resource: Resource, obj: Object) -> Object:
        call = self._call(resource, obj)
        obj = {**obj, "apiVersion": resource.api_version, "kind": resource.kind}
        obj, _ = call.endpoint.read(orjson.dumps(obj), JSON, "Ignore")
        written = await self._app.objects.create(call, obj)
        return orjson.loads(written.value)

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        call = self._call(resource, obj)
        call.subresource = subresource
        obj = {**obj, "apiVersion": resource.api_version, "kind": resource.kind}
        obj, _ = call.endpoint.read(orjson.dumps(obj), JSON, "Ignore")
        written = await write.put(self._app.objects, call, obj)
        return orjson.loads(written.value)

    async def delete(self, resource: Resource, namespace: str | None, name: str) -> None:
        call = Call(self._app.endpoint(resource), SERVER, namespace or "", name)
        await self._app.objects.delete(call, DeleteOptions(propagation="Background"))


class ApiServer:
    """One API server over one store. The store must not be started: the server starts and closes it."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.served = Resources()
        self.metrics = Metrics()
        self.health = Health()
        self.objects = Objects(store)
        self.reader = StoreReader(store, self.endpoint)
        self.writer = ServerWriter(self)
        self.watching = Watching(store)
        self.discovery = Discovery(self.served.all)
        self.openapi = OpenApi()
        self.custom = CustomResources(self)
        self.aggregation = Aggregation(self)
        self.supervisor = Supervisor("apiserver")
        self.addresses: list[tuple[str, int]] = []
        self._endpoints: dict[Resource, Endpoint] = {}
        self._paths: dict[str, Callable[[Request], Answer | Awaitable[Answer]]] = {}
        self._ready = False
        self._stopping = False
        self.admission: admission.Chain = None  # type: ignore[assignment]
        self._pipeline: Pipeline = None  # type: ignore[assignment]
        self._http: Server | None = None

    def endpoint(self, resource: Resource) -> Endpoint:
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            endpoint = self._endpoints[resource] = Endpoint(resource)
            endpoint.indexes = Indexes(self.store, endpoint)
        return endpoint

    def serve(self, endpoint: Endpoint) -> None:
        """Take a custom resource's endpoint in."""
        self._endpoints[endpoint.resource] = endpoint
        self.served.add(endpoint.resource)

    def unserve(self, endpoint: Endpoint) -> None:
        self.served.remove(endpoint.resource)
        self._endpoints.pop(endpoint.resource, None)

    # ---- life

    async def start(self) -> None:
        """Recover the store, bring the cluster's own objects about, listen. Raises StartError, StoreError."""
        started = clock.monotonic()
        await self.store.start()
        self._build()
        self.custom.start()
        await bootstrap.run(self._bootstrap_config(), self.reader, self.writer)
        fairness = self._pipeline.fairness
        if fairness is not None:
            await fairness.settle(self.writer)
            self.supervisor.start("flowschemas", lambda: fairness.follow(self.writer))
        await self.aggregation.start()
        await self._listen()
        self._ready = True
        log.info("serving", addresses=[f"{h}:{p}" for h, p in self.addresses], seconds=round(clock.monotonic() - started, 3))

    def _build(self) -> None:
        config, reader = self.config, self.reader
        try:
            authn_config = authn.Config(
                client_ca=config.client_ca_file, front_proxy_ca=config.requestheader_client_ca_file, front_proxy_names=config.requestheader_allowed_names,
                token_file=config.token_auth_file, sa_keys=config.service_account_key_files, sa_signing_key=config.service_account_signing_key_file,
                issuers=config.service_account_issuers, audiences=config.api_audiences, jwks_uri=config.service_account_jwks_uri, anonymous=config.anonymous_auth,
                bootstrap_tokens=config.enable_bootstrap_token_auth,
            )  # fmt: skip
            authenticator = authn.build(authn_config, reader)
            authorizer = authz.build(authz.Config(config.authorization_mode), reader)
            issuer = authn.issuer(authn_config) if config.service_account_signing_key_file else None
            self.admission = admission.build(
                admission.Config(config.enable_admission_plugins, config.disable_admission_plugins),
                reader,
                self.writer,
                authorizer,
                by_kind=self.served.by_kind,
            )
            self.streaming = Streaming(config, reader)
            first, _, last = config.service_node_port_range.partition("-")
            services = allocators.Services(reader, config.service_cluster_ip_range.split(","), (int(first), int(last or first)))
        except (ValueError, OSError, ssl.SSLError) as e:
            raise StartError(str(e)) from e
        self.objects.allocators = services
        self.objects.expiry = Expiry(self.store, config.event_ttl_seconds)
        self.supervisor.start("ipaddresses", allocators.IPAddresses(reader, self.writer).run)
        self.identities = Identities(reader, authenticator, issuer)
        self.permissions = Permissions(authorizer)
        self.authorizer = authorizer
        self.issuer = issuer
        self.admission.start(self.supervisor)
        self.subresources = subresources.Subresources(self)
        self._pipeline = Pipeline(self.served, authenticator, authorizer, self._dispatch, self.metrics)
        for resource in self.served.all():
            if not resource.custom and (text := self.endpoint(resource).rules.deprecated):
                self._pipeline.deprecations[resource] = render_headers(write.warning_headers([text]))
        self._pipeline.inflight_max = config.max_requests_inflight + config.max_mutating_requests_inflight
        if config.enable_priority_and_fairness:
            self._pipeline.fairness = Fairness(reader, self.metrics, self._pipeline.inflight_max, self._count)
        try:
            self._pipeline.auditor = audit.build(config.audit, self.metrics)
        except (ValueError, OSError) as e:
            raise StartError(str(e)) from e
        self._add_paths()
        self.health.checks["etcd"] = lambda: ""
        self.health.ready_only["poststarthook/bootstrap"] = lambda: "" if self._ready else "not finished"
        self.health.ready_only["shutdown"] = lambda: "the server is shutting down" if self._stopping else ""
        self.metrics.add(
            Gauge(
                "apiserver_longrunning_requests",
                "Gauge of all active long-running apiserver requests.",
                ("verb",),
                lambda: [(("WATCH",), float(len(self.watching.watches)))],
            )
        )
        self.metrics.add(
            Gauge("apiserver_storage_objects", "Number of stored objects at the time of last check split by kind.", ("resource",), self._object_counts)
        )

    def _count(self, info: RequestInfo) -> int:
        """How many objects a list looks at."""
        assert info.spec is not None
        return self.store.count(*self.endpoint(info.spec).range(info.namespace))

    def _object_counts(self) -> list[tuple[tuple[str, ...], float]]:
        out: list[tuple[tuple[str, ...], float]] = []
        for resource in {r.prefix: r for r in self.served.all() if "list" in r.verbs}.values():
            endpoint = self.endpoint(resource)
            out.append(
                (
                    (f"{resource.plural}.{resource.group}" if resource.group else resource.plural,),
                    float(self.store.range(endpoint.prefix, endpoint.end, 0, 1).count),
                )
            )
        return out

    def _bootstrap_config(self) -> bootstrap.Config:
        c = self.config
        return bootstrap.Config(
            advertise_address=c.advertise_address, secure_port=c.secure_port, service_cidr=c.service_cluster_ip_range.split(",")[0], client_ca=c.client_ca_file,
            front_proxy_ca=c.requestheader_client_ca_file,
        )  # fmt: skip

    async def _listen(self) -> None:
        config = self.config
        context = None
        if config.tls_cert_file is not None and config.tls_private_key_file is not None:
            try:
                context = server_context(config.tls_cert_file, config.tls_private_key_file, config.client_ca_file)
                if config.requestheader_client_ca_file is not None:
                    context.load_verify_locations(config.requestheader_client_ca_file)
            except (OSError, ssl.SSLError) as e:
                raise StartError(f"cannot use the serving certificate {config.tls_cert_file}: {e}") from e
        elif not all(_loopback(a) for a in config.bind_addresses):
            raise StartError("without --tls-cert-file and --tls-private-key-file only loopback addresses can be served")
        self._http = Server(self.handle, context, on_error=self._pipeline.on_error)
        port = config.secure_port
        for address in config.bind_addresses:
            try:
                taken = await self._http.listen(address, port)
            except OSError as e:
                raise StartError(f"cannot listen on {address}:{port}: {e.strerror or e}") from e
            self.addresses.append(taken)
            port = port or taken[1]

    async def close(self) -> None:
        """Readiness fails first, then watches end, requests in flight finish, the store closes."""
        self._stopping = True
        self.watching.close()
        if self._http is not None:
            await self._http.close(self.config.shutdown_grace_seconds)
        await self.supervisor.close()
        if self._pipeline is not None and self._pipeline.auditor is not None:
            await self._pipeline.auditor.close()
        if self.admission is not None:
            await self.admission.close()
        await self.store.close()

    # ---- requests

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        return self._pipeline(request)

    def _dispatch(self, request: Request) -> Answer | Awaitable[Answer]:
        info = request.info
        if not info.is_resource:
            return self._nonresource(request)
        spec = info.spec
        if spec is None:
            if (remote := self.aggregation.find(info.group, info.version)) is not None:
                return self.aggregation.proxy(request, remote)
            raise ApiError(404, "NotFound", "the server could not find the requested resource", {})
        endpoint = self._endpoints.get(spec) or self.endpoint(spec)
        verb = info.verb
        if info.subresource:
            return self.subresources.handle(endpoint, request)
        if verb not in spec.verbs or (info.namespace and not spec.namespaced and spec.plural != "namespaces"):
            raise _not_allowed()
        if verb == "get":
            return read.get(self.store, endpoint, request)
        if verb == "list":
            return read.list_(self.store, endpoint, request)
        if verb == "watch":
            return watch(self.watching, endpoint, request)
        if (spec.namespaced and not info.namespace) or (not info.name and verb in ("update", "patch")):
            raise _not_allowed()
        if verb == "create":
            if spec.group in REVIEW_GROUPS:
                return self._review(endpoint, request)
            if spec.plural == "bindings" and not spec.group:
                return self.subresources.bind(endpoint, request)
            if info.name:
                raise _not_allowed()
        return _WRITES[verb](self.objects, endpoint, request, self.admission)

    def _review(self, endpoint: Endpoint, request: Request) -> Response:
        obj, warnings = endpoint.read(request.body, content_type(request), request.param("fieldValidation") or "Warn")
        call = write.call_of(endpoint, request, None, "CreateOptions")
        reviews: Any = self.identities if endpoint.group == "authentication.k8s.io" else self.permissions
        namespace = request.info.namespace
        arguments = (request.user, namespace, request.info.name, obj) if reviews is self.identities else (request.user, namespace, obj)
        obj.setdefault("metadata", {})
        self.objects.manage(call, None, obj)
        return read.shown(request, orjson.dumps(reviews.answer(endpoint.plural, *arguments)), endpoint.printer, 201, write.warning_headers(warnings))

    # ---- what is no resource

    def _add_paths(self) -> None:
        add = self._paths
        add["/"] = lambda r: Response(200, orjson.dumps({"paths": self._all_paths()}, option=orjson.OPT_INDENT_2))
        add["/version"] = lambda r: Response(200, orjson.dumps(version(), option=orjson.OPT_INDENT_2))
        for kind in ("healthz", "livez", "readyz"):
            add[f"/{kind}"] = self.health.answer
        add["/metrics"] = lambda r: Response(200, self.metrics.render(), "text/plain; version=0.0.4; charset=utf-8")
        issuer = self.issuer
        if issuer is not None:
            add["/.well-known/openid-configuration"] = lambda r: self._discovery_document(issuer.configuration(self._own_url()), JSON)
            add["/openid/v1/jwks"] = lambda r: self._discovery_document(issuer.jwks(), "application/jwk-set+json")

    def _all_paths(self) -> list[str]:
        """What the root path lists: everything that a GET finds something under."""
        groups = {(r.group, r.version) for r in self.served.all()}
        apis = {"/api", "/apis"} | {f"/apis/{g}" for g, _ in groups if g} | {f"/apis/{g}/{v}" if g else f"/api/{v}" for g, v in groups}
        checks = {f"/{kind}/{name}" for kind in ("healthz", "livez", "readyz") for name in self.health.checks}
        return sorted(apis | checks | (self._paths.keys() - {"/"}) | {"/openapi/v2", "/openapi/v3"})

    def _own_url(self) -> str:
        host = self.config.advertise_address
        return f"https://{f'[{host}]' if ':' in host else host}:{self.addresses[0][1] if self.addresses else self.config.secure_port}"

    @staticmethod
    def _discovery_document(document: Object, media: str) -> Response:
        """For relying parties of service-account tokens (OpenID Connect Discovery 1.0)."""
        return Response(200, orjson.dumps(document), media, [("Cache-Control", "public, max-age=3600")])

    def _nonresource(self, request: Request) -> Answer | Awaitable[Answer]:
        path = request.path.rstrip("/") or "/"
        handler = self._paths.get(path)
        if self.aggregation.remotes and path.startswith("/apis/") and path.count("/") == 3:
            _, _, group, version = path.split("/")
            if (remote := self.aggregation.find(group, version)) is not None:
                return self.aggregation.proxy(request, remote)
        if handler is None and path.split("/", 2)[1] in ("healthz", "livez", "readyz"):
            handler = self.health.answer
        if handler is None and request.method in ("GET", "HEAD"):
            found = self.discovery.answer(path, request.headers.get("accept", ""), request.headers.get("if-none-match", ""))
            if found is not None:
                return found
            if path.startswith("/openapi/"):
                return self._openapi(request, path)
        if handler is None:
            return Response(404, b"404 page not found\n", "text/plain; charset=utf-8")
        if request.method not in ("GET", "HEAD"):
            raise _not_allowed()
        return handler(request)

    async def _openapi(self, request: Request, path: str) -> Response:
        headers = request.headers
        found = await self.openapi.answer(
            path, headers.get("accept", ""), headers.get("accept-encoding", ""), headers.get("if-none-match", ""), request.param("hash")
        )
        return found or Response(404, b"404 page not found\n", "text/plain; charset=utf-8")


_WRITES: dict[str, Any] = {
    "create": write.create,
    "update": write.update,
    "patch": write.patch,
    "delete": write.delete,
    "deletecollection": write.delete_collection,
}


def _not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def version() -> dict[str, str]:
    """version.Info of /version."""
    v = _version
    return {
        "major": v.KUBERNETES_MAJOR, "minor": v.KUBERNETES_MINOR, "emulationMajor": v.KUBERNETES_MAJOR, "emulationMinor": v.KUBERNETES_MINOR,
        "minCompatibilityMajor": v.KUBERNETES_MAJOR, "minCompatibilityMinor": str(int(v.KUBERNETES_MINOR) - 1), "gitVersion": v.KUBERNETES_VERSION, "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "2026-11-20T00:00:00Z", "goVersion": "", "compiler": "cython", "platform": "linux/amd64",
    }  # fmt: skip
