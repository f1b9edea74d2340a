"""Who may use the node's API: authentication by client certificate or token, authorization by asking the API server.

Default deny: no credentials and no anonymous access is 401; everything else is a SubjectAccessReview on `nodes/SUBRESOURCE` (upstream's delegated
authorization), whose answer is kept for a while. Without an API server only `AlwaysAllow` lets anybody in.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from fastkube.api.errors import ApiError
from fastkube.client.rest import Client
from fastkube.http.message import Request
from fastkube.runtime import clock

ALLOWED_SECONDS = 300.0
DENIED_SECONDS = 30.0
TOKEN_SECONDS = 120.0
CACHE_MAX = 1024

_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# What has a subresource of its own; anything else is `proxy`.
_SUBRESOURCES = (("/stats", ("stats",)), ("/metrics", ("metrics",)), ("/logs", ("log",)), ("/healthz", ("healthz", "proxy")), ("/pods", ("pods", "proxy")), ("/configz", ("configz", "proxy")))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""


ANONYMOUS = Caller("system:anonymous", ("system:unauthenticated",))


class _Cache:
    """Answers that are good for a while, bounded."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Any, tuple[Any, float]] = OrderedDict()

    def get(self, key: Any) -> Any:
        entry = self._entries.get(key)
        return entry[0] if entry and entry[1] > clock.monotonic() else None

    def put(self, key: Any, value: Any, seconds: float) -> None:
        self._entries[key] = (value, clock.monotonic() + seconds)
        self._entries.move_to_end(key)
        if len(self._entries) > CACHE_MAX:
            self._entries.popitem(last=False)


class Gate:
    def __init__(self, client: Client | None, node_name: str, *, mode: str = "Webhook", anonymous: bool = False, tokens: bool = True) -> None:
        self.client = client
        self.node_name = node_name
        self.mode = mode
        self.anonymous = anonymous
        self.tokens = tokens
        self._decisions = _Cache()
        self._callers = _Cache()

    async def check(self, request: Request) -> Caller:
        """Who asks. ApiError 401 or 403."""
        caller = await self._authenticate(request)
        if self.mode == "AlwaysAllow":
            return caller
        verb = _VERBS.get(request.method, "get")
        subresources = next((s for prefix, s in _SUBRESOURCES if request.path == prefix or request.path.startswith(prefix + "/")), ("proxy",))
        for subresource in subresources:
            if await self._allowed(caller, verb, subresource):
                return caller
        text = f"Forbidden (user={caller.name}, verb={verb}, resource=nodes, subresource(s)=[{' '.join(subresources)}])"
        raise ApiError(403, "Forbidden", text)

    async def _authenticate(self, request: Request) -> Caller:
        der = request.peer_certificate
        if der:
            subject = x509.load_der_x509_certificate(der).subject
            names = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
            groups = tuple(str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
            if names:
                return Caller(names[0], (*groups, "system:authenticated"))
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token and self.tokens and self.client is not None:
            return await self._review(token.strip())
        if self.anonymous:
            return ANONYMOUS
        raise ApiError(401, "Unauthorized", "Unauthorized")

    async def _review(self, token: str) -> Caller:
        key = hashlib.sha256(token.encode()).digest()
        known: Caller | None = self._callers.get(key)
        if known is None:
            assert self.client is not None
            review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
            status = (await self.client.create("authentication.k8s.io/v1/tokenreviews", review)).get("status") or {}
            if not status.get("authenticated"):
                raise ApiError(401, "Unauthorized", "Unauthorized")
            user = status["user"]
            known = Caller(user["username"], tuple(user.get("groups") or ()), user.get("uid", ""))
            self._callers.put(key, known, TOKEN_SECONDS)
        return known

    async def _allowed(self, caller: Caller, verb: str, subresource: str) -> bool:
        key = (caller, verb, subresource)
        known: bool | None = self._decisions.get(key)
        if known is None:
            if self.client is None:
                return False
            attributes = {"verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node_name}
            review = {
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {"user": caller.name, "groups": list(caller.groups), "uid": caller.uid, "resourceAttributes": attributes},
            }  # fmt: skip
            answer = await self.client.create("authorization.k8s.io/v1/subjectaccessreviews", review)
            known = bool((answer.get("status") or {}).get("allowed"))
            self._decisions.put(key, known, ALLOWED_SECONDS if known else DENIED_SECONDS)
        return known
