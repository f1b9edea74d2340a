"""The cluster's DNS: informers feed the zone, the server answers from it; with `publish`, it sees to its own Service.

It listens once Services and EndpointSlices are known whole: before, it could only deny names that exist.
"""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prometheus_client

from fastkube.api.errors import ApiError
from fastkube.client import kubeconfig
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.dns.forward import Forwarder, Upstream, upstreams_of
from fastkube.dns.server import Responder, Server
from fastkube.dns.zone import Zone, records_of
from fastkube.http.message import Request, Response
from fastkube.http.server import Server as HttpServer
from fastkube.runtime import logs
from fastkube.runtime.tasks import Supervisor

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
NAMESPACE, NAME = "kube-system", "kube-dns"
PUBLISH_RETRY_SECONDS = 2.0
RESOLV_CONF_SECONDS = 5.0
BATCH_SECONDS = 0.005

log = logs.get("dns")


class ListenError(Exception):
    """The address to listen on is not to be had."""


@dataclass(slots=True)
class Config:
    kubeconfig: str
    listen: tuple[str, int]
    domain: str = "cluster.local"
    cluster_ip: str = "10.96.0.10"
    publish: bool = False
    resolv_conf: Path = Path("/etc/resolv.conf")
    upstreams: list[Upstream] | None = None  # None: those of resolv_conf
    http: tuple[str, int] | None = None  # where /health, /ready and /metrics are served; None: nowhere
    reverse_cidrs: list[str] = field(default_factory=lambda: ["10.244.0.0/16", "10.96.0.0/12"])


class Records:
    """Keeps the zone true to Services and EndpointSlices; changes that come close together are worked out once."""

    def __init__(self, zone: Zone, services: Informer, slices: Informer) -> None:
        self.zone, self.services, self.slices = zone, services, slices
        self.dirty: set[str] = set()
        slices.add_index("service", service_keys)
        services.add_handler(self._service, lambda _, new: self._service(new), self._service)
        slices.add_handler(self._slice, self._slice, self._slice)

    def _service(self, service: dict[str, Any]) -> None:
        self._touch([f"{service['metadata']['namespace']}/{service['metadata']['name']}"])

    def _slice(self, *versions: dict[str, Any]) -> None:
        for slice_ in versions:
            self._touch(service_keys(slice_))

    def _touch(self, keys: list[str]) -> None:
        if keys and not self.dirty:
            asyncio.get_running_loop().call_later(BATCH_SECONDS, self.refresh)
        self.dirty.update(keys)

    def refresh(self) -> None:
        """Bring the zone up to date."""
        dirty, self.dirty = self.dirty, set()
        for key in dirty:
            namespace, _, name = key.partition("/")
            service = self.services.get(namespace, name)
            names = records_of(service, self.slices.by_index("service", key), self.zone.domain) if service else {}
            self.zone.set((namespace, name), names)


def service_keys(slice_: dict[str, Any]) -> list[str]:
    name = (slice_["metadata"].get("labels") or {}).get(SERVICE_NAME_LABEL)
    return [f"{slice_['metadata']['namespace']}/{name}"] if name else []


def slim(obj: dict[str, Any]) -> dict[str, Any]:
    """An object without what the zone never reads."""
    meta = obj["metadata"]
    return {**obj, "metadata": {k: meta[k] for k in ("name", "namespace", "labels", "resourceVersion", "uid") if k in meta}}


def published(config: Config, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Service and the EndpointSlice that lead clients to us."""
    host = config.listen[0]
    labels = {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}
    ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "clusterIP": config.cluster_ip,
            "ports": [{"name": name, "port": 53, "protocol": protocol, "targetPort": port} for name, protocol in ports],
        },
    }
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{NAME}-{socket.gethostname().split('.')[0].lower()}",
            "namespace": NAMESPACE,
            "labels": {SERVICE_NAME_LABEL: NAME, "endpointslice.kubernetes.io/managed-by": "fastkube-dns"},
        },
        "addressType": "IPv6" if ":" in host else "IPv4",
        "endpoints": [{"addresses": [host], "conditions": {"ready": True, "serving": True, "terminating": False}}],
        "ports": [{"name": name, "port": port, "protocol": protocol} for name, protocol in ports],
    }
    return service, slice_


async def ensure(client: Client, resource: str, wanted: dict[str, Any]) -> None:
    """Create the object, or set it right when it says something else in what we care for. ApiError."""
    name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
    try:
        found = await client.get(resource, name, namespace)
    except ApiError as e:
        if e.code != 404:
            raise
        await client.create(resource, wanted, namespace)
        log.info("published", resource=resource, name=name)
        return
    merged = copy.deepcopy(found)
    for key, value in wanted.items():
        if key == "spec":
            merged["spec"]["ports"] = value["ports"]
        elif key not in ("metadata", "apiVersion", "kind"):
            merged[key] = value
    if resource == "v1/services" and found["spec"].get("clusterIP") != wanted["spec"]["clusterIP"]:
        log.warning("the DNS service has another address than pods are told", address=found["spec"].get("clusterIP"), told=wanted["spec"]["clusterIP"])
    if merged != found:
        await client.update(resource, merged)
        log.info("published anew", resource=resource, name=name)


async def publish(client: Client, config: Config, port: int, changed: asyncio.Event) -> None:
    """Task body: keep our Service and EndpointSlice there and right, whoever changes them."""
    while True:
        changed.clear()
        try:
            service, slice_ = published(config, port)
            await ensure(client, "v1/services", service)
            await ensure(client, "discovery.k8s.io/v1/endpointslices", slice_)
        except ApiError as e:
            log.warning("cannot publish the DNS service yet", error=e.message)
            await asyncio.sleep(PUBLISH_RETRY_SECONDS)
            continue
        await changed.wait()
        await asyncio.sleep(0.2)  # our own writes come back as changes


def ours_changed(changed: asyncio.Event) -> Any:
    """A handler that notices changes of the published objects."""

    def on(*versions: dict[str, Any]) -> None:
        obj = versions[-1]
        if obj["metadata"].get("namespace") == NAMESPACE and obj["metadata"]["name"].startswith(NAME):
            changed.set()

    return on


async def follow(config: Config, forwarder: Forwarder) -> None:
    """Task body: look for circles, and take up changes of resolv.conf."""
    seen = _mtime(config.resolv_conf)
    while True:
        await forwarder.probe()
        while config.upstreams is not None or _mtime(config.resolv_conf) == seen:
            await asyncio.sleep(RESOLV_CONF_SECONDS)
        seen = _mtime(config.resolv_conf)
        forwarder.upstreams = upstreams_of(config.resolv_conf, {config.listen[0], config.cluster_ip})
        log.info("resolv.conf has changed", upstreams=[u.host for u in forwarder.upstreams])


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def http_handler(ready: Callable[[], bool]) -> Callable[[Request], Response]:
    def handle(request: Request) -> Response:
        if request.path == "/health" or (request.path == "/ready" and ready()):
            return Response(200, b"OK", "text/plain")
        if request.path == "/metrics":
            return Response(200, prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST)
        return Response(503 if request.path == "/ready" else 404, b"", "text/plain")

    return handle


async def before(stop: asyncio.Event, work: asyncio.Future[Any]) -> bool:
    """Wait for `work`; False when `stop` came first."""
    stopped = asyncio.ensure_future(stop.wait())
    done, late = await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    for future in late:
        future.cancel()
    return work in done


async def run(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises ListenError."""
    host, port = config.listen
    upstreams = config.upstreams if config.upstreams is not None else upstreams_of(config.resolv_conf, {host, config.cluster_ip})
    zone = Zone(config.domain, config.reverse_cidrs)
    forwarder = Forwarder(upstreams)
    server = Server(Responder(zone, forwarder))
    answering = asyncio.Event()
    web = HttpServer(http_handler(answering.is_set))
    if config.http:
        try:
            await web.listen(*config.http)
        except OSError as e:
            raise ListenError(f"cannot listen on {config.http[0]}:{config.http[1]}: {e.strerror or e}") from e
    async with kubeconfig.load(config.kubeconfig, user_agent="coredns") as client, Supervisor("dns") as supervisor:
        services = Informer(client, "v1/services", transform=slim)
        slices = Informer(client, "discovery.k8s.io/v1/endpointslices", transform=slim)
        records = Records(zone, services, slices)
        changed = asyncio.Event()
        for informer in (services, slices):
            informer.add_handler(None, ours_changed(changed), ours_changed(changed))
            supervisor.start(f"informer {informer.resource.plural}", informer.run)
        if not await before(stop, asyncio.gather(services.synced(), slices.synced())):
            return
        records.refresh()
        try:
            port = await server.listen(host, port)
        except OSError as e:
            raise ListenError(f"cannot listen on {host}:{port}: {e.strerror or e}") from e
        log.info("answering", address=f"{host}:{port}", domain=config.domain, names=len(zone.names), upstreams=[u.host for u in upstreams])
        try:
            answering.set()
            supervisor.start("upstreams", lambda: follow(config, forwarder))
            if config.publish:
                supervisor.start("publish", lambda: publish(client, config, port, changed))
            await stop.wait()
        finally:
            await server.close()
            await web.close()
