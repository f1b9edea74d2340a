"""The aggregation layer: group versions that an extension server answers for, beside our own (https://kubernetes.io/docs/concepts/extend-kubernetes/api-extension/apiserver-aggregation/).

An APIService with a service makes its group version remote. A prober of its own asks the server whether it is there, writes the condition Available and fetches
discovery and OpenAPI; requests go on to it over TLS with the front proxy's certificate, the user in X-Remote-* headers. Laws:

- Who asks is what this server authenticated: such headers of the client's, and its credentials, never get through.
- A server that does not answer costs its own group versions only: 503 for those, shown as stale in discovery.
- What this server serves itself has a local APIService each, made and removed with it; it cannot be taken over by a remote one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from fastkube.api import errors, resources
from fastkube.api.errors import ApiError
from fastkube.http.message import Answer, Request, Response, clean, iterate
from fastkube.runtime import clock, entropy, logs
from fastkube.server.customresources import DEFINITIONS
from fastkube.server.request import User
from fastkube.server.streaming import SERVICES, SLICES, Target

if TYPE_CHECKING:
    from fastkube.server.app import ApiServer

Object = dict[str, Any]

API_SERVICES = resources.parse("apiregistration.k8s.io/v1/apiservices")
AUTOMANAGED = "kube-aggregator.kubernetes.io/automanaged"
PROBER = User("system:kube-aggregator", ("system:masters",))
PROBE_SECONDS = 10.0
UNAVAILABLE_PROBE_SECONDS = 1.0
PROBE_SECONDS_MAX = 5.0  # of one probe
DOCUMENT_BYTES_MAX = 16 << 20  # of a discovery or OpenAPI document
TLS_CONTEXTS_MAX = 256
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
CUSTOM_PRIORITY, VERSION_PRIORITY = 1000, 100

# What upstream gives its own groups; versions: 15 for v1, less for those before it, more for those after.
_PRIORITIES = {
    "": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600, "autoscaling": 17500, "batch": 17400,
    "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100, "rbac.authorization.k8s.io": 17000, "storage.k8s.io": 16800,
    "apiextensions.k8s.io": 16700, "admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600, "coordination.k8s.io": 16500, "node.k8s.io": 16300,
    "discovery.k8s.io": 16200, "flowcontrol.apiserver.k8s.io": 16100, "resource.k8s.io": 15900,
}  # fmt: skip

log = logs.get("aggregation")


class Unavailable(Exception):
    """Why the group version cannot be served now: the condition's reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Remote:
    """A group version that another server answers for. `resources` as in aggregated discovery, the last known."""

    def __init__(self, obj: Object) -> None:
        self.obj = obj
        self.name: str = obj["metadata"]["name"]
        self.group, self.version = obj["spec"].get("group") or "", obj["spec"]["version"]
        self.available = False
        self.resources: list[Object] = []
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/{self.version}"


class Aggregation:
    def __init__(self, app: ApiServer) -> None:
        self.app = app
        self.remotes: dict[tuple[str, str], Remote] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._wake = asyncio.Event()

    async def start(self) -> None:
        """Follow what is stored; returns when the local APIServices are there."""
        reader = self.app.reader
        for obj in list(reader.list(API_SERVICES)):
            self._changed(obj, None)
        reader.on_change(API_SERVICES, self._changed)
        reader.on_change(DEFINITIONS, lambda new, old: self._wake.set())
        await self._settle()
        self.app.supervisor.start("apiservices", self._follow)

    def find(self, group: str, version: str) -> Remote | None:
        return self.remotes.get((group, version))

    def _changed(self, new: Object | None, old: Object | None) -> None:
        obj = new or old
        assert obj is not None
        key = (obj["spec"].get("group") or "", obj["spec"]["version"])
        known = self.remotes.get(key)
        if known is not None and new is not None and new["spec"] == known.obj["spec"]:
            known.obj = new
            return
        if known is not None:
            del self.remotes[key]
            if known.task is not None:
                known.task.cancel()
            self._publish(known, None)
        if new is not None and new["spec"].get("service") and key not in self.app.served.groups():
            remote = self.remotes[key] = Remote(new)
            remote.task = self.app.supervisor.start(f"probe/{remote.name}", lambda: self._probe(remote))
        self._wake.set()

    # ---- local ones

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            await self._settle()

    async def _settle(self) -> None:
        """Bring it about that there is an APIService for each group version that this server serves."""
        self._wake.clear()
        wanted = {f"{v}.{g}": (g, v) for g, v in self.app.served.groups()}
        custom = {(r.group, r.version) for r in self.app.served.all() if r.custom}
        stored = {o["metadata"]["name"]: o for o in self.app.reader.list(API_SERVICES)}
        work = [self._create(g, v, (g, v) in custom) for name, (g, v) in wanted.items() if name not in stored]
        work += [
            self._delete(name)
            for name, obj in stored.items()
            if name not in wanted and not obj["spec"].get("service") and (obj["metadata"].get("labels") or {}).get(AUTOMANAGED)
        ]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException) and not (isinstance(result, ApiError) and result.code in (404, 409)):
                self._wake.set()  # the supervisor tries again
                raise result

    async def _create(self, group: str, version: str, custom: bool) -> None:
        priority = CUSTOM_PRIORITY if custom else _PRIORITIES.get(group, 15000)
        spec: Object = {
            "version": version,
            "groupPriorityMinimum": priority,
            "versionPriority": VERSION_PRIORITY if custom else _version_priority(group, version),
        }
        if group:
            spec["group"] = group
        labels = {AUTOMANAGED: "true" if custom else "onstart"}
        await self.app.writer.create(API_SERVICES, {"metadata": {"name": f"{version}.{group}", "labels": labels}, "spec": spec})

    async def _delete(self, name: str) -> None:
        await self.app.writer.delete(API_SERVICES, None, name)

    # ---- requests

    async def proxy(self, request: Request, remote: Remote) -> Answer:
        """The extension server's answer. ApiError 503."""
        if not remote.available:
            raise errors.ApiError(503, "ServiceUnavailable", "service unavailable")
        try:
            return await self._send(request, remote, request.user)
        except Unavailable as e:
            remote.wake.set()
            raise errors.ApiError(503, "ServiceUnavailable", f"error trying to reach service: {e}") from None

    async def _send(self, request: Request, remote: Remote, user: User) -> Answer:
        host, port, name = self._resolve(remote)
        target = Target(host, port, request.target, self._context(remote.obj["spec"]), name, tuple(identity(user)))
        try:
            return await self.app.streaming.forward(request, target)
        except ApiError as e:
            raise Unavailable("FailedDiscoveryCheck", e.message) from e

    def _resolve(self, remote: Remote) -> tuple[str, int, str]:
        """-> (host, port, name in the certificate), at one of the service's ready endpoints. Raises Unavailable."""
        reference = remote.obj["spec"]["service"]
        namespace, name, port = reference["namespace"], reference["name"], reference.get("port") or 443
        shown, server_name = f'service/{name} in "{namespace}"', f"{name}.{namespace}.svc"
        service = self.app.reader.get(SERVICES, namespace, name)
        if service is None:
            raise Unavailable("ServiceNotFound", f"{shown} is not present")
        if service["spec"].get("type") == "ExternalName":
            return service["spec"]["externalName"], port, server_name
        ports = [p for p in service["spec"].get("ports") or () if p.get("port") == port]
        if not ports:
            raise Unavailable("ServicePortError", f"{shown} is not listening on port {port}")
        slices = [s for s in self.app.reader.list(SLICES, namespace) if (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == name]
        if not slices:
            raise Unavailable("EndpointsNotFound", f"cannot find endpointslices for {shown}")
        wanted = ports[0].get("name") or ""
        found = [
            (address, p["port"])
            for part in slices
            for p in part.get("ports") or ()
            if (p.get("name") or "") == wanted and p.get("port")
            for e in part.get("endpoints") or ()
            if (e.get("conditions") or {}).get("ready", True)
            for address in e.get("addresses") or ()
        ]
        if not found:
            raise Unavailable("MissingEndpoints", f'endpointslices for {shown} have no addresses with port name "{wanted}"')
        return (*entropy.generator().choice(found), server_name)

    def _context(self, spec: Object) -> ssl.SSLContext:
        """TLS to the extension server: verified by caBundle, with the front proxy's certificate. Raises Unavailable."""
        insecure = bool(spec.get("insecureSkipTLSVerify"))
        bundle = "" if insecure else spec.get("caBundle") or ""
        key = "insecure" if insecure else bundle
        context = self._contexts.get(key)
        if context is None:
            try:
                context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode() if bundle else None)
                if insecure:
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                pair = self.app.config.proxy_client
                if pair is not None:
                    context.load_cert_chain(pair.cert, pair.key)
            except (ValueError, OSError) as e:
                raise Unavailable("FailedDiscoveryCheck", f"TLS cannot be set up: {e}") from e
            if len(self._contexts) >= TLS_CONTEXTS_MAX:
                self._contexts.clear()
            self._contexts[key] = context
        return context

    # ---- whether it is there

    async def _probe(self, remote: Remote) -> None:
        while True:
            remote.wake.clear()
            try:
                async with asyncio.timeout(PROBE_SECONDS_MAX):
                    found = await self._discover(remote)
                condition = ("True", "Passed", "all checks passed")
                if not remote.available or found != remote.resources:
                    remote.resources = found
                    remote.available = True
                    self._publish(remote, await self._openapi(remote))
            except (Unavailable, TimeoutError) as e:
                reason = e.reason if isinstance(e, Unavailable) else "FailedDiscoveryCheck"
                condition = ("False", reason, str(e) or f"failing or missing response from {remote.path}: timeout")
                if remote.available:
                    remote.available = False
                    self.app.discovery.changed()
            await self._write(remote, *condition)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS if remote.available else UNAVAILABLE_PROBE_SECONDS):
                    await remote.wake.wait()

    async def _get(self, remote: Remote, path: str, accept: str = "application/json") -> Any:
        """A document of the extension server's; None when it has no such one. Raises Unavailable."""
        answer = await self._send(Request("GET", path, {"accept": accept}), remote, PROBER)
        assert isinstance(answer, Response)
        size, parts = 0, []
        async for part in iterate(answer):
            size += len(part)
            if size > DOCUMENT_BYTES_MAX:
                raise Unavailable("FailedDiscoveryCheck", f"the answer to {path} is too long")
            parts.append(part)
        if answer.status != 200:
            return None
        try:
            return orjson.loads(b"".join(parts))
        except orjson.JSONDecodeError:
            return None

    async def _discover(self, remote: Remote) -> list[Object]:
        """Its resources, in the aggregated form."""
        listed = await self._get(remote, remote.path)
        if not isinstance(listed, dict) or listed.get("kind") != "APIResourceList":
            raise Unavailable("FailedDiscoveryCheck", f"failing or missing response from {remote.path}: no APIResourceList")
        whole = await self._get(remote, "/apis", AGGREGATED)
        if isinstance(whole, dict) and whole.get("kind") == "APIGroupDiscoveryList":
            for group in whole.get("items") or ():
                if (group.get("metadata") or {}).get("name") == remote.group:
                    for version in group.get("versions") or ():
                        if version.get("version") == remote.version:
                            return version.get("resources") or []
        return aggregated(listed, remote.group, remote.version)

    async def _openapi(self, remote: Remote) -> Object | None:
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                document = await self._get(remote, "/openapi/v2")
        except (Unavailable, TimeoutError):
            return None
        return openapi_part(document, remote.path) if isinstance(document, dict) else None

    def _publish(self, remote: Remote, part: Object | None) -> None:
        self.app.openapi.custom(remote.path[1:], part)
        self.app.discovery.remote = sorted(
            ((r.group, r.version, r) for r in self.remotes.values() if r.resources), key=lambda item: (-item[2].obj["spec"]["groupPriorityMinimum"], item[0])
        )
        self.app.discovery.changed()

    async def _write(self, remote: Remote, status: str, reason: str, message: str) -> None:
        stored = self.app.reader.get(API_SERVICES, None, remote.name)
        if stored is None:
            return
        conditions = (stored.get("status") or {}).get("conditions") or []
        old: Object = next((c for c in conditions if c.get("type") == "Available"), {})
        if (old.get("status"), old.get("reason"), old.get("message")) == (status, reason, message):
            return
        since = old["lastTransitionTime"] if old.get("status") == status else clock.rfc3339()
        new = {"type": "Available", "status": status, "lastTransitionTime": since, "reason": reason, "message": message}
        kept = [c for c in conditions if c.get("type") != "Available"]
        try:
            await self.app.writer.update(API_SERVICES, {**stored, "status": {"conditions": [*kept, new]}}, "status")
        except ApiError as e:
            if e.code not in (404, 409):  # the next probe says it again
                raise


# ---- pure


def identity(user: User) -> list[tuple[str, str]]:
    """The headers by which an extension server knows the user."""
    out = [("X-Remote-User", clean(user.name))]
    if user.uid:
        out.append(("X-Remote-Uid", clean(user.uid)))
    out += [("X-Remote-Group", clean(group)) for group in user.groups]
    out += [(f"X-Remote-Extra-{quote(key, safe='')}", clean(value)) for key, values in user.extra.items() for value in values]
    return out


def aggregated(listed: Object, group: str, version: str) -> list[Object]:
    """An APIResourceList as aggregated discovery's resources."""
    out: dict[str, Object] = {}
    for one in sorted(listed.get("resources") or (), key=lambda r: "/" in r.get("name", "")):
        name, _, sub = one.get("name", "").partition("/")
        kind = {"group": one.get("group") or group, "version": one.get("version") or version, "kind": one.get("kind", "")}
        if sub:
            parent = out.setdefault(name, {"resource": name, "scope": "Namespaced" if one.get("namespaced") else "Cluster", "verbs": []})
            parent.setdefault("subresources", []).append({"subresource": sub, "responseKind": kind, "verbs": one.get("verbs") or []})
            continue
        out[name] = {
            "resource": name,
            "responseKind": kind,
            "scope": "Namespaced" if one.get("namespaced") else "Cluster",
            "singularResource": one.get("singularName") or "",
            "verbs": one.get("verbs") or [],
            **{key: one[key] for key in ("shortNames", "categories") if one.get(key)},
        }
    return list(out.values())


def openapi_part(document: Object, path: str) -> Object | None:
    """What an OpenAPI v2 document says of a group version; definitions that are Kubernetes' own are ours already."""
    paths = {p: item for p, item in (document.get("paths") or {}).items() if p == path + "/" or p.startswith(path + "/")}
    own = {n: d for n, d in (document.get("definitions") or {}).items() if not n.startswith(("io.k8s.api.", "io.k8s.apimachinery."))}
    return {"paths": paths, "definitions": own} if paths else None


def _version_priority(group: str, version: str) -> int:
    if group in ("", "events.k8s.io") and version == "v1":
        return 1 if not group else 15
    return 30 if version == "v2" else 15 if version == "v1" else 9 if "beta" in version else 1
