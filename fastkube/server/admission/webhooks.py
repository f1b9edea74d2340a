"""Mutating and validating admission webhooks (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/).

Mutating ones are called one after the other, by configuration and webhook name, and again when a later one changed the object and they ask for it
(reinvocationPolicy IfNeeded, once); validating ones at once. A webhook that cannot be asked counts as its failurePolicy says. Connections are kept.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from fastkube.api import errors, kinds, resources
from fastkube.api.errors import ApiError
from fastkube.api.patch import json as jsonpatch
from fastkube.api.resources import Resource
from fastkube.runtime import entropy
from fastkube.server.admission.expressions import ExpressionError, evaluate
from fastkube.server.admission.matching import GROUP, any_rule, exempt, request_of, selected
from fastkube.server.admission.plugin import Plugin
from fastkube.server.authz import Authorizer
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

if TYPE_CHECKING:
    import aiohttp

MUTATING = resources.parse(f"{GROUP}/v1/mutatingwebhookconfigurations")
VALIDATING = resources.parse(f"{GROUP}/v1/validatingwebhookconfigurations")
SERVICES = resources.parse("v1/services")
SLICES = resources.parse("discovery.k8s.io/v1/endpointslices")
ANSWER_BYTES_MAX = 8 * 1024 * 1024
CONNECTIONS_MAX = 100
TLS_CONTEXTS_MAX = 256
_EFFECTLESS = ("None", "NoneOnDryRun")


class Hook:
    """One webhook of one configuration."""

    __slots__ = ("configuration", "name", "spec")

    def __init__(self, configuration: str, spec: Object) -> None:
        self.configuration, self.spec, self.name = configuration, spec, spec["name"]


class Unreachable(Exception):
    """The webhook could not be asked, or did not answer properly; says why."""


class Caller:
    """Sends AdmissionReviews. A service is reached at one of its ready endpoints, by its name in the certificate."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def call(self, hook: Hook, request: dict[str, Any]) -> Object:
        """The webhook's response object. Raises Unreachable."""
        import aiohttp

        config = hook.spec["clientConfig"]
        seconds = hook.spec.get("timeoutSeconds") or 10
        body = orjson.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
        url, host = self._target(config)
        shown = config.get("url") or f"https://{host}{(config['service'].get('path') or '/')}?timeout={seconds}s"
        try:
            if self._session is None:
                self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX), trust_env=False)
            async with self._session.post(
                url, data=body, headers={"Content-Type": "application/json", "Accept": "application/json", **({"Host": host} if host else {})},
                ssl=self._context(config.get("caBundle") or ""), server_hostname=host or None, timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            ) as answer:  # fmt: skip
                data = await answer.content.read(ANSWER_BYTES_MAX)
                if answer.status != 200:
                    raise Unreachable(
                        f"failed to call webhook: an error on the server ({data[:200].decode(errors='replace')!r}) has prevented the request from succeeding"
                    )
        except TimeoutError:
            raise Unreachable(f'failed to call webhook: Post "{shown}": context deadline exceeded') from None
        except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError) as e:
            raise Unreachable(f'failed to call webhook: Post "{shown}": {e}') from None
        return _response(data, request["uid"])

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _target(self, config: Object) -> tuple[str, str]:
        """-> (URL, name in the certificate; "": that of the URL)."""
        if config.get("url"):
            return config["url"], ""
        service = config["service"]
        namespace, name, port = service["namespace"], service["name"], service.get("port") or 443
        stored = self._reader.get(SERVICES, namespace, name)
        if stored is None:
            raise Unreachable(f'failed to call webhook: service "{name}" not found')
        address = self._endpoint(stored, port)
        if address is None:
            raise Unreachable(f'failed to call webhook: no endpoints available for service "{name}"')
        path = "/" + (service.get("path") or "").lstrip("/")
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"https://{host}:{address[1]}{path}", f"{name}.{namespace}.svc"

    def _endpoint(self, service: Object, port: int) -> tuple[str, int] | None:
        """A ready endpoint of the service's port, by chance."""
        if service["spec"].get("type") == "ExternalName":
            return service["spec"]["externalName"], port
        meta = service["metadata"]
        named = next((p.get("name") or "" for p in service["spec"].get("ports") or () if p.get("port") == port), None)
        found = []
        for part in self._reader.list(SLICES, meta["namespace"]):
            if (part["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == meta["name"]:
                number = next((p.get("port") for p in part.get("ports") or () if (p.get("name") or "") == named), None)
                ready = [e for e in part.get("endpoints") or () if (e.get("conditions") or {}).get("ready", True)]
                found += [(address, number) for e in ready for address in e.get("addresses") or () if number]
        return entropy.generator().choice(found) if found else None

    def _context(self, bundle: str) -> ssl.SSLContext:
        context = self._contexts.get(bundle)
        if context is None:
            if len(self._contexts) >= TLS_CONTEXTS_MAX:
                self._contexts.clear()
            context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode() if bundle else None)
            self._contexts[bundle] = context
        return context


def _response(data: bytes, uid: str) -> Object:
    try:
        review = orjson.loads(data)
        response = review["response"]
        if not isinstance(response, dict) or not isinstance(response.get("allowed", False), bool):
            raise ValueError("expected a response with `allowed`")
    except (ValueError, KeyError, TypeError) as e:
        raise Unreachable(f"failed to call webhook: received invalid webhook response: {e}") from None
    if response.get("uid") != uid:
        raise Unreachable(f'received invalid webhook response: expected response.uid="{uid}", got "{response.get("uid", "")}"')
    return response


class _Webhooks(Plugin):
    """What both kinds share."""

    resource: Resource

    def __init__(self, reader: Reader, authorizer: Authorizer, caller: Caller) -> None:
        self._reader, self._authorizer, self._caller = reader, authorizer, caller
        self._hooks: list[Hook] = []
        self._dirty = True
        reader.on_change(self.resource, self._changed)

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return resource.group != GROUP

    def _changed(self, new: Object | None, old: Object | None) -> None:
        self._dirty = True

    def _concerned(self, attributes: AdmissionAttributes) -> list[Hook]:
        """The webhooks to ask. ApiError when one cannot take a dry run, or a match condition fails under failurePolicy Fail."""
        if self._dirty:
            configurations = sorted(self._reader.list(self.resource), key=lambda c: c["metadata"]["name"])
            self._hooks = [Hook(c["metadata"]["name"], w) for c in configurations for w in c.get("webhooks") or ()]
            self._dirty = False
        if not self._hooks or exempt(attributes):
            return []
        return [hook for hook in self._hooks if self._is_for(hook, attributes)]

    def _is_for(self, hook: Hook, attributes: AdmissionAttributes) -> bool:
        spec = hook.spec
        if not any_rule(spec.get("rules") or (), attributes, spec.get("matchPolicy", "Equivalent") == "Equivalent") or not selected(
            self._reader, spec, attributes
        ):
            return False
        conditions = spec.get("matchConditions") or ()
        if conditions and not self._conditions_hold(hook, conditions, attributes):
            return False
        if attributes.dry_run and spec.get("sideEffects") not in _EFFECTLESS:
            raise errors.bad_request(f'admission webhook "{hook.name}" does not support dry run')
        return True

    def _conditions_hold(self, hook: Hook, conditions: list[Object], attributes: AdmissionAttributes) -> bool:
        data: dict[str, Any] = {"object": attributes.obj, "oldObject": attributes.old, "request": request_of(attributes), "authorizer": {"requestResource": {}}}
        problem = ""
        for condition in conditions:
            try:
                if evaluate(condition["expression"], data, self._authorizer, attributes.user) is not True:
                    return False
            except ExpressionError as e:
                problem = str(e)
        if problem and hook.spec.get("failurePolicy", "Fail") != "Ignore":
            raise errors.internal(f'failed calling webhook "{hook.name}": failed to evaluate match conditions: {problem}')
        return not problem

    async def _ask(self, hook: Hook, attributes: AdmissionAttributes) -> Object | None:
        """The response of one that allows; None when it could not be asked and that does not matter. ApiError otherwise."""
        request = {**request_of(attributes), "object": attributes.obj, "oldObject": attributes.old}
        try:
            response = await self._caller.call(hook, request)
        except Unreachable as e:
            if hook.spec.get("failurePolicy", "Fail") == "Ignore":
                return None
            raise errors.internal(f'failed calling webhook "{hook.name}": {e}') from None
        attributes.warnings += [str(w) for w in response.get("warnings") or ()]
        for key, value in (response.get("auditAnnotations") or {}).items():
            attributes.annotations[f"{hook.name}/{key}"] = str(value)
        if not response.get("allowed"):
            raise _refusal(hook.name, response.get("status") or {})
        return response


def _refusal(name: str, status: Object) -> ApiError:
    by = f'admission webhook "{name}" denied the request'
    why = status.get("message") or status.get("reason")
    code = status.get("code") or 0
    return ApiError(code if code >= 400 else 400, status.get("reason") or "", f"{by}: {why}" if why else f"{by} without explanation", status.get("details"))


class ValidatingAdmissionWebhook(_Webhooks):
    name = "ValidatingAdmissionWebhook"
    resource = VALIDATING

    def validate(self, attributes: AdmissionAttributes) -> Any:
        hooks = self._concerned(attributes)
        return self._all(hooks, attributes) if hooks else None

    async def _all(self, hooks: list[Hook], attributes: AdmissionAttributes) -> None:
        answers = await asyncio.gather(*(self._ask(hook, attributes) for hook in hooks), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer


class MutatingAdmissionWebhook(_Webhooks):
    name = "MutatingAdmissionWebhook"
    resource = MUTATING

    def __init__(self, reader: Reader, authorizer: Authorizer, caller: Caller, default: Callable[[Resource, Object], None] | None = None) -> None:
        """`default(resource, obj)` fills in defaults after a patch (default: by the built-in kinds' rules)."""
        super().__init__(reader, authorizer, caller)
        self._default = default or _builtin_defaults

    def admit(self, attributes: AdmissionAttributes) -> Any:
        hooks = self._concerned(attributes)
        return self._each(hooks, attributes) if hooks else None

    async def _each(self, hooks: list[Hook], attributes: AdmissionAttributes) -> None:
        asked: list[tuple[Hook, Object | None]] = []  # and what the object was after each
        for hook in hooks:
            await self._mutate(hook, attributes)
            asked.append((hook, copy.deepcopy(attributes.obj)))
        for hook, seen in asked:
            if hook.spec.get("reinvocationPolicy") == "IfNeeded" and seen != attributes.obj:
                await self._mutate(hook, attributes)

    async def _mutate(self, hook: Hook, attributes: AdmissionAttributes) -> None:
        response = await self._ask(hook, attributes)
        if response is None or not response.get("patch") or attributes.obj is None:
            return
        try:
            if response.get("patchType") != "JSONPatch":
                raise ValueError(f'unsupported patch type "{response.get("patchType", "")}"')
            patched = jsonpatch.apply(copy.deepcopy(attributes.obj), base64.b64decode(response["patch"], validate=True))
            if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
                raise ValueError("the patched object is none")
        except (ValueError, ApiError) as e:
            raise errors.internal(f'failed calling webhook "{hook.name}": {e}') from None
        if not attributes.subresource:
            self._default(attributes.resource, patched)
        attributes.obj.clear()
        attributes.obj.update(patched)


def _builtin_defaults(resource: Resource, obj: Object) -> None:
    if not resource.custom:
        kinds.of(resource.group, resource.kind).default(obj)
