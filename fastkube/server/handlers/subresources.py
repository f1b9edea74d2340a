"""Subresources: status and scale of any kind, and the special ones of pods, namespaces, service accounts and certificate requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from fastkube.api import codec, errors, meta, tables
from fastkube.api.errors import ApiError, bad_request
from fastkube.http.message import Answer, Request, Response
from fastkube.server import authz
from fastkube.server.handlers import read, write
from fastkube.server.handlers.negotiation import content_type
from fastkube.server.registry import pods, scale
from fastkube.server.registry.endpoint import Endpoint
from fastkube.server.registry.objects import Call, Object
from fastkube.server.request import AdmissionAttributes

if TYPE_CHECKING:
    from fastkube.server.app import ApiServer

BUDGET_STATUS = "status"
SESSIONS = ("exec", "attach", "portforward")


class Subresources:
    def __init__(self, app: ApiServer) -> None:
        self.app = app

    def handle(self, endpoint: Endpoint, request: Request) -> Answer | Awaitable[Answer]:
        info, spec = request.info, endpoint.resource
        found = spec.subresources.get(info.subresource)
        if found is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource", {})
        if info.verb not in found.verbs and not (info.subresource == "proxy"):
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})
        if spec.namespaced and not info.namespace:
            raise ApiError(404, "NotFound", "the server could not find the requested resource", {})
        special = getattr(self, f"_{spec.plural}_{info.subresource}", None) if not spec.group else None
        if special is not None:
            return special(endpoint, request)
        if info.subresource == "scale":
            return self._scale(endpoint, request)
        return self._object(endpoint, request)

    def _object(self, endpoint: Endpoint, request: Request) -> Answer | Awaitable[Answer]:
        """A subresource that shows the object and updates a part of it (status, approval, finalize, ephemeralcontainers, resize)."""
        app, verb = self.app, request.info.verb
        if verb == "get":
            return read.get(app.store, endpoint, request)
        return (write.update if verb == "update" else write.patch)(app.objects, endpoint, request, app.admission)

    # ---- scale

    def _scale(self, endpoint: Endpoint, request: Request) -> Answer | Awaitable[Answer]:
        if request.info.verb == "get":
            kv = self.app.store.get(endpoint.resource.key(request.info.namespace, request.info.name))
            if kv is None:
                raise errors.not_found(endpoint.plural, endpoint.group, request.info.name)
            return self._shown(request, scale.of(endpoint, endpoint.decode(kv), endpoint.scale_paths), 200)
        return self._write_scale(endpoint, request)

    async def _write_scale(self, endpoint: Endpoint, request: Request) -> Answer:
        verb = request.info.verb
        call = write.call_of(endpoint, request, self.app.admission, "UpdateOptions" if verb == "update" else "PatchOptions")
        if verb == "update":
            wanted, call.warnings[:] = codec.read(request.body, content_type(request), "autoscaling", "v1", "Scale", validation=call.validation)
            meta.check_update_name(wanted, call.name)

            def make(old: Object) -> Object:
                return scale.write(endpoint, old, wanted, endpoint.scale_paths[0])
        else:
            kind = write.PATCH_TYPES[content_type(request, tuple(write.PATCH_TYPES))]

            def make(old: Object) -> Object:
                return scale.write(
                    endpoint, old, write.patched_scale(scale.of(endpoint, old, endpoint.scale_paths), kind, request.body, call), endpoint.scale_paths[0]
                )

        written = await self.app.objects.update(call, make, prepare=endpoint.rules.prepare_update)
        obj = endpoint.from_storage(orjson.loads(written.value))
        return self._shown(request, scale.of(endpoint, obj, endpoint.scale_paths), 200, call.warnings)

    # ---- pods

    async def bind(self, endpoint: Endpoint, request: Request) -> Answer:
        """POST of bindings: the pod is named by the body."""
        call = write.call_of(self.app.endpoint(self.app.served.find("", "v1", "pods")), request, self.app.admission, "CreateOptions")  # type: ignore[arg-type]
        binding, _ = codec.read(request.body, content_type(request), "", "v1", "Binding", validation=call.validation)
        call.name = (binding.get("metadata") or {}).get("name") or ""
        call.subresource = "binding"
        return await self._bind(call, binding)

    async def _pods_binding(self, endpoint: Endpoint, request: Request) -> Answer:
        call = write.call_of(endpoint, request, self.app.admission, "CreateOptions")
        binding, _ = codec.read(request.body, content_type(request), "", "v1", "Binding", validation=call.validation)
        meta.check_name(binding, call.name)
        return await self._bind(call, binding)

    async def _bind(self, call: Call, binding: Object) -> Answer:
        await self._admit(call, binding)
        call.admission = None
        await pods.bind(self.app.objects, call, binding)
        return _success(201)

    async def _pods_eviction(self, endpoint: Endpoint, request: Request) -> Answer:
        app = self.app
        call = write.call_of(endpoint, request, app.admission, "CreateOptions")
        eviction, call.warnings[:] = codec.read(request.body, content_type(request), "policy", "v1", "Eviction", validation=call.validation)
        if (eviction["metadata"].get("name") or call.name) != call.name:
            raise bad_request("name in URL does not match name in Eviction object")
        await self._admit(call, eviction)
        options = write.options_of(eviction.get("deleteOptions") or {}, request)
        call.dry_run = call.dry_run or options.dry_run
        budgets = app.endpoint(pods.BUDGETS)

        def budget_call(name: str) -> Call:
            return Call(budgets, request.user, call.namespace, name, BUDGET_STATUS)

        await pods.evict(app.objects, app.reader, call, budget_call, eviction, options)
        return _success(201)

    # ---- what ends at a node agent, a pod or a service

    def _pods_log(self, endpoint: Endpoint, request: Request) -> Any:
        return self.app.streaming.log(request)

    def _pods_exec(self, endpoint: Endpoint, request: Request) -> Any:
        return self._connect(endpoint, request, self.app.streaming.exec)

    def _pods_attach(self, endpoint: Endpoint, request: Request) -> Any:
        return self._connect(endpoint, request, self.app.streaming.attach)

    def _pods_portforward(self, endpoint: Endpoint, request: Request) -> Any:
        return self._connect(endpoint, request, self.app.streaming.portforward)

    def _pods_proxy(self, endpoint: Endpoint, request: Request) -> Any:
        return self._connect(endpoint, request, self.app.streaming.pod_proxy)

    def _services_proxy(self, endpoint: Endpoint, request: Request) -> Any:
        return self._connect(endpoint, request, self.app.streaming.service_proxy)

    def _nodes_proxy(self, endpoint: Endpoint, request: Request) -> Any:
        return self._connect(endpoint, request, self.app.streaming.node_proxy)

    async def _connect(self, endpoint: Endpoint, request: Request, go: Callable[[Request], Any]) -> Answer:
        """Admission's CONNECT, then on. A session asked for by GET needs the right to create one, too (upstream since 1.35)."""
        info = request.info
        if info.subresource in SESSIONS and info.verb == "get":
            decision = self.app.authorizer.authorize(request.user, replace(info, verb="create"))
            if not decision.allowed:
                raise authz.forbidden(request.user, replace(info, verb="create"), decision.reason)
        attributes = AdmissionAttributes("CONNECT", endpoint.resource, info.subresource, info.namespace, info.name, None, None, request.user)
        await self.app.admission.admit(attributes)
        await self.app.admission.validate(attributes)
        return await go(request)

    # ---- service accounts

    async def _serviceaccounts_token(self, endpoint: Endpoint, request: Request) -> Answer:
        call = write.call_of(endpoint, request, self.app.admission, "CreateOptions")
        obj, warnings = codec.read(
            request.body, content_type(request), "authentication.k8s.io", "v1", "TokenRequest", validation=request.param("fieldValidation") or "Warn"
        )
        await self._admit(call, obj)
        info = request.info
        done = self.app.identities.answer("serviceaccounts/token", request.user, info.namespace, info.name, obj)
        return self._shown(request, done, 201, warnings)

    async def _admit(self, call: Call, obj: Object) -> None:
        """Admission of what is created as a subresource and stored nowhere as such (a binding, an eviction, a token request)."""
        attributes = call.attributes("CREATE", obj, None)
        try:
            await self.app.admission.admit(attributes)
            await self.app.admission.validate(attributes)
        except BaseException:
            attributes.undo()
            raise

    @staticmethod
    def _shown(request: Request, obj: Object, status: int, warnings: Sequence[str] = ()) -> Response:
        group = obj["apiVersion"].rpartition("/")[0]
        return read.shown(request, orjson.dumps(obj), tables.of_kind(group, obj["kind"]), status, write.warning_headers(list(warnings)))


def _success(status: int) -> Response:
    body: Any = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": status}
    return Response(status, orjson.dumps(body))
