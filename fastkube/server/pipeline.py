"""From a request to its answer: who asks, whether they may, what does it; and the edge where every failure becomes a Status.

Laws:
- No exception passes the edge: an ApiError is its Status, anything else is 500 with an id that stands in the log beside the traceback.
- A request that needs no waiting is answered synchronously, without a task.
- Nothing is looked up for a request before it is authorized, except what its path means.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from fastkube.api import errors
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.http import compress
from fastkube.http.message import Answer, BadTarget, Request, Response, Upgrade
from fastkube.runtime import clock, entropy, logs
from fastkube.server import authz, routing
from fastkube.server.audit import Auditor
from fastkube.server.authn import impersonation
from fastkube.server.fairness import Fairness
from fastkube.server.handlers.negotiation import JSON, PLAIN, error_form, render
from fastkube.server.metrics import Metrics
from fastkube.server.request import RequestInfo

log = logs.get("apiserver")

INFLIGHT_MAX = 600  # requests being waited for at once, as upstream's --max-requests-inflight and --max-mutating-requests-inflight together
RETRY_SECONDS = 1

_METRIC_VERBS = {
    "get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETECOLLECTION", "head": "GET", "post": "POST",
}  # fmt: skip

Dispatch = Callable[[Request], "Answer | Awaitable[Answer]"]
_HTTP_REASONS = {400: "BadRequest", 408: "Timeout", 413: "RequestEntityTooLarge", 414: "RequestURITooLong", 431: "RequestHeaderFieldsTooLarge"}


class Pipeline:
    """The handler of the HTTP server. `request.user` is set beforehand only by a transport in this process, which answers for it."""

    def __init__(
        self, served: routing.Resources, authenticator: Any, authorizer: Any, dispatch: Dispatch, metrics: Metrics, inflight_max: int = INFLIGHT_MAX
    ) -> None:
        self._served = served
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._dispatch = dispatch
        self._metrics = metrics
        self.deprecations: dict[Resource, bytes] = {}  # rendered Warning headers of every answer about a resource
        self._inflight = 0
        self.inflight_max = inflight_max
        self._audit_prefix = entropy.uid()[:24].encode()
        self._audit_count = entropy.generator().getrandbits(40)
        self.auditor: Auditor | None = None
        self.fairness: Fairness | None = None  # None: INFLIGHT_MAX for all alike

    def __call__(self, request: Request) -> Answer | Awaitable[Answer]:
        started = clock.monotonic()
        try:
            answer = self._handle(request)
        except Exception as e:
            return self._done(request, self.failure(request, e), started)
        if isinstance(answer, (Response, Upgrade)):
            return self._done(request, answer, started)
        return self._later(request, answer, started)

    def _handle(self, request: Request) -> Answer | Awaitable[Answer]:
        info = request.info = routing.parse(request, self._served)
        if request.user is None:
            user = self._authenticator.authenticate(request)
            if self.auditor is not None:
                request.audit = self.auditor.received(request, user, self._audit_id(request))
            headers = request.headers
            if "impersonate-user" in headers or "impersonate-group" in headers or "impersonate-uid" in headers:
                user = impersonation.apply(headers, user, self._authorizer)
                if request.audit is not None:
                    request.audit.impersonated = user
            request.user = user
        elif self.auditor is not None:
            request.audit = self.auditor.received(request, request.user, self._audit_id(request))
        decision = self._authorizer.authorize(request.user, info)
        if request.audit is not None:
            request.audit.decision = decision
        if not decision.allowed:
            raise authz.forbidden(request.user, info, decision.reason)
        if self.fairness is not None:
            return self.fairness(request, self._dispatch)
        if self._inflight >= self.inflight_max and info.is_resource and authz.MASTERS not in request.user.groups:
            self._metrics.terminations.add(("429", "apiserver", info.verb.upper()))
            raise errors.too_many_requests("too many requests, please try again later", RETRY_SECONDS)
        return self._dispatch(request)

    async def _later(self, request: Request, work: Awaitable[Answer], started: float) -> Answer:
        self._inflight += 1
        try:
            answer = await work
        except Exception as e:
            answer = self.failure(request, e)
        finally:
            self._inflight -= 1
        return self._done(request, answer, started)

    def _audit_id(self, request: Request) -> bytes:
        """The client's own, or a new one."""
        given = request.headers.get("audit-id")
        if given is not None:
            return _printable(given[:64])
        self._audit_count += 1
        return b"%b%012x" % (self._audit_prefix, self._audit_count & 0xFFFFFFFFFFFF)

    def _audited(self, auditor: Auditor, request: Request, answer: Answer) -> Answer:
        if request.user is None and request.audit is None and request.info is not None:  # nobody was authenticated
            request.audit = auditor.received(request, None, self._audit_id(request))
        return answer if request.audit is None else auditor.answered(request.audit, answer)

    def _done(self, request: Request, answer: Answer, started: float) -> Answer:
        if self.auditor is not None:
            answer = self._audited(self.auditor, request, answer)
        if isinstance(answer, Response):
            audit = b"Audit-Id: %b\r\n" % (self._audit_id(request) if request.audit is None else request.audit.id)
            if not answer.headers or not any(name == "Cache-Control" for name, _ in answer.headers):
                audit += b"Cache-Control: no-cache, private\r\n"
            info = request.info
            if info is not None and info.spec in self.deprecations:
                audit += self.deprecations[info.spec]
            if request.flow is not None:
                audit += request.flow.headers
            code = answer.status
            if "accept-encoding" in request.headers and compress.worth(request, answer):
                answer = compress.gzipped(answer)
            answer = Response(code, answer.body, answer.content_type, answer.headers, audit)  # the handler may have kept its own
        else:
            code = 101
        if request.info is not None:
            self._count(request.info, code, clock.monotonic() - started)
        return answer

    def _count(self, info: RequestInfo, code: int, seconds: float) -> None:
        verb = _METRIC_VERBS.get(info.verb, "OTHER")
        if info.spec is None and info.is_resource:
            labels = ("apiserver", "", "", "", "", verb, "")
        else:
            scope = "" if not info.is_resource else "resource" if info.name else "namespace" if info.namespace else "cluster"
            labels = (
                "apiserver",
                info.group,
                info.resource,
                scope,
                info.subresource if info.spec and info.subresource in info.spec.subresources else "",
                verb,
                info.version,
            )
        self._metrics.requests.add((str(code), labels[0], "", *labels[1:]))
        if info.verb != "watch":
            self._metrics.durations.observe(labels, seconds)

    # ---- the edge

    def failure(self, request: Request | None, error: BaseException) -> Response:
        if isinstance(error, ApiError):
            return self.status(request, error)
        if isinstance(error, BadTarget):
            return self.status(request, errors.bad_request(str(error)))
        incident = entropy.uid()
        if request is not None and request.audit is not None:
            request.audit.panicked = True
        log.error("a request failed", incident=incident, method=request.method if request else "", path=request.path if request else "", exc_info=error)
        return self.status(request, errors.internal(f"the request could not be carried out; the server's log has it as incident {incident}"))

    def status(self, request: Request | None, error: ApiError) -> Response:
        """The Status of a failure, as an answer."""
        form, status = error_form(request), error.status()
        try:
            body = render(status, form)
        except Exception:  # a form that cannot carry the text: JSON can
            form, body = PLAIN, orjson.dumps(status)
        return Response(error.code, body + b"\n" * (form.media == JSON), form.media, error.headers)

    def on_error(self, request: Request | None, status: int, message: str, error: BaseException | None) -> Response:
        """What the HTTP server could not make a request of, or could not finish (fastkube.http.server.ErrorAnswer)."""
        if error is not None:
            return self.failure(request, error)
        return self.status(request, ApiError(status, _HTTP_REASONS.get(status, "BadRequest"), message))


def _printable(text: str) -> bytes:
    return "".join(c for c in text if c.isalnum() or c in "-_.").encode("ascii", "ignore")
