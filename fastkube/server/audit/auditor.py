"""The events of a request: made at its stages, as upstream's audit.k8s.io/v1 Event objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from fastkube.api import codec
from fastkube.api.errors import ApiError
from fastkube.http.message import Answer, Pieces, Request, Response, Upgrade
from fastkube.runtime import clock
from fastkube.server.audit import policy as policies
from fastkube.server.audit.log import LogBackend
from fastkube.server.audit.policy import LEVEL_NAMES, NONE, REQUEST, REQUEST_RESPONSE, Policy, Rule
from fastkube.server.audit.webhook import BATCH_SECONDS_MAX, Endpoint, WebhookBackend
from fastkube.server.authz.decision import Decision
from fastkube.server.handlers.negotiation import JSON, YAML
from fastkube.server.metrics import Counter, Metrics
from fastkube.server.request import RequestInfo, User

Object = dict[str, Any]

BODY_BYTES_MAX = 10 << 20  # of one object in an event (upstream's --audit-log-truncate-max-event-size); beyond it the object is left out
USER_AGENT_CHARACTERS_MAX = 1024
TRUNCATED = "audit.k8s.io/truncated"


@dataclass(slots=True)
class Config:
    policy_file: Path | None = None  # --audit-policy-file
    log_path: str = ""  # --audit-log-path; "-": standard output
    log_size_mb: int = 0  # --audit-log-maxsize
    log_backups: int = 0  # --audit-log-maxbackup
    log_age_days: int = 0  # --audit-log-maxage
    webhook_config_file: Path | None = None  # --audit-webhook-config-file
    webhook_batch_seconds: float = BATCH_SECONDS_MAX  # --audit-webhook-batch-max-wait


class Backend(Protocol):
    def emit(self, event: bytes) -> None: ...

    async def close(self) -> None: ...


class Record:
    """What is known of one request. `decision` and `impersonated` are set by the pipeline when it knows them."""

    __slots__ = ("annotations", "decision", "id", "impersonated", "panicked", "received", "request", "rule", "user")

    def __init__(self, request: Request, rule: Rule, user: User | None, id_: bytes) -> None:
        self.request, self.rule, self.user, self.id = request, rule, user, id_
        self.impersonated: User | None = None
        self.decision: Decision | None = None
        self.panicked = False
        self.annotations: dict[str, str] = {}
        self.received = clock.rfc3339_micro()


_current: ContextVar[Record | None] = ContextVar("audited", default=None)


def annotate(annotations: dict[str, str]) -> None:
    """Add to the annotations of the request that is being carried out; the first to set a key wins."""
    record = _current.get()
    if record is not None:
        for key, value in annotations.items():
            record.annotations.setdefault(key, value)


class Auditor:
    def __init__(self, policy: Policy, backends: Sequence[Backend], metrics: Metrics) -> None:
        self._policy, self.backends = policy, list(backends)
        self._events = Counter("apiserver_audit_event_total", "Counter of audit events generated and sent to the audit backend.", ())
        self._levels = Counter("apiserver_audit_level_total", "Counter of policy levels for audit events (1 per request).", ("level",))
        self._lost = Counter(
            "apiserver_audit_error_total", "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected.", ("plugin",)
        )
        for metric in (self._events, self._levels, self._lost):
            metrics.add(metric)

    def lost(self, count: int) -> None:
        self._lost.add(("webhook",), count)

    def received(self, request: Request, user: User | None, id_: bytes) -> Record | None:
        """It is known who asks (None: authentication failed). The record that goes along with the request; None when it is not recorded."""
        rule = self._policy.rule_for(user, request.info)
        self._levels.add((LEVEL_NAMES[rule.level],))
        if rule.level == NONE:
            _current.set(None)
            return None
        record = Record(request, rule, user, id_)
        _current.set(record)
        self._emit(record, "RequestReceived")
        return record

    def answered(self, record: Record, answer: Answer) -> Answer:
        """The answer, made such that its end is recorded too where it does not end at once."""
        if isinstance(answer, Upgrade):
            self._emit(record, "ResponseStarted", answer)
            return Upgrade(self._upgraded(record, answer), answer.headers)
        body: Any = answer.body
        if record.panicked:
            self._emit(record, "Panic", answer)
        elif isinstance(body, (bytes, Pieces)):
            self._emit(record, "ResponseComplete", answer)
        else:
            self._emit(record, "ResponseStarted", answer)
            wrapped = self._iterated(record, answer, body) if hasattr(body, "__aiter__") else _Push(self, record, answer, body)
            return Response(answer.status, wrapped, answer.content_type, answer.headers, answer.raw_headers)
        return answer

    async def _iterated(self, record: Record, answer: Response, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for piece in body:
                yield piece
        finally:
            self._emit(record, "ResponseComplete", answer)

    def _upgraded(self, record: Record, answer: Upgrade) -> Any:
        async def run(stream: Any) -> None:
            try:
                await answer.run(stream)
            finally:
                self._emit(record, "ResponseComplete", answer)

        return run

    def _emit(self, record: Record, stage: str, answer: Answer | None = None) -> None:
        if stage in record.rule.omitted:
            return
        line = orjson.dumps(event(record, stage, answer))
        self._events.add(())
        for backend in self.backends:
            backend.emit(line)

    async def close(self) -> None:
        for backend in self.backends:
            await backend.close()


class _Push:
    """A pushed body whose end is recorded (fastkube.http.message.Push)."""

    def __init__(self, auditor: Auditor, record: Record, answer: Response, body: Any) -> None:
        self._auditor, self._record, self._answer, self._body = auditor, record, answer, body
        self.started, self.resumed = body.started, body.resumed

    def closed(self) -> None:
        self._body.closed()
        self._auditor._emit(self._record, "ResponseComplete", self._answer)


# ---- events


def event(record: Record, stage: str, answer: Answer | None) -> Object:
    """One Event, its fields in upstream's order."""
    request, rule = record.request, record.rule
    info: RequestInfo = request.info
    sent = _sent(request) if rule.level >= REQUEST or info.verb in ("create", "update") else None
    out: Object = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": LEVEL_NAMES[rule.level],
        "auditID": record.id.decode(),
        "stage": stage,
        "requestURI": request.target,
        "verb": info.verb,
        "user": _user(record.user),
    }
    if record.impersonated is not None:
        out["impersonatedUser"] = _user(record.impersonated)
    out["sourceIPs"] = _addresses(request)
    if agent := request.headers.get("user-agent"):
        out["userAgent"] = agent if len(agent) <= USER_AGENT_CHARACTERS_MAX else agent[:USER_AGENT_CHARACTERS_MAX] + "...TRUNCATED"
    if info.is_resource:
        out["objectRef"] = _reference(info, sent if stage != "RequestReceived" and isinstance(sent, dict) else None)
    annotations: dict[str, str] = {}
    if answer is not None:
        out["responseStatus"] = _status(answer)
        if record.panicked:
            out["responseStatus"] |= {"status": "Failure", "reason": "InternalError"}
        if rule.level >= REQUEST and stage != "RequestReceived":
            _put(out, "requestObject", sent, rule)
        if rule.level >= REQUEST_RESPONSE and stage == "ResponseComplete":
            shown = _shown(answer)
            if shown is TRUNCATED:
                annotations[TRUNCATED] = "true"
            else:
                _put(out, "responseObject", shown, rule)
        if record.decision is not None:
            annotations["authorization.k8s.io/decision"] = "allow" if record.decision.allowed else "forbid"
            annotations["authorization.k8s.io/reason"] = record.decision.reason
    out["requestReceivedTimestamp"] = record.received
    out["stageTimestamp"] = record.received if answer is None else clock.rfc3339_micro()
    if annotations or record.annotations:
        out["annotations"] = {**record.annotations, **annotations}
    return out


def _user(user: User | None) -> Object:
    if user is None:
        return {}
    out: Object = {"username": user.name}
    if user.uid:
        out["uid"] = user.uid
    if user.groups:
        out["groups"] = list(user.groups)
    if user.extra:
        out["extra"] = {k: list(v) for k, v in user.extra.items()}
    return out


def _addresses(request: Request) -> list[str]:
    """Where the request came from, as proxies and the connection say, each once."""
    forwarded = [a.strip() for a in request.headers.get("x-forwarded-for", "").split(",")]
    return [a for a in dict.fromkeys((*forwarded, request.headers.get("x-real-ip", ""), request.remote[0])) if a]


def _reference(info: RequestInfo, sent: Object | None) -> Object:
    meta = (sent or {}).get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    found = {
        "resource": info.resource, "namespace": info.namespace, "name": info.name or meta.get("name"), "uid": meta.get("uid"), "apiGroup": info.group,
        "apiVersion": info.version, "resourceVersion": meta.get("resourceVersion"), "subresource": info.subresource,
    }  # fmt: skip
    return {k: v for k, v in found.items() if v}


def _status(answer: Answer) -> Object:
    if isinstance(answer, Upgrade):
        return {"metadata": {}, "code": 101}
    out: Object = {"metadata": {}}
    if answer.status >= 400:
        status = _shown(answer)
        if isinstance(status, dict) and status.get("kind") == "Status":
            out |= {k: status[k] for k in ("status", "message", "reason", "details") if status.get(k)}
        else:
            out["status"] = "Failure"
    return {**out, "code": answer.status}


def _sent(request: Request) -> Any:
    """The request's body, decoded; None when there is none or it cannot be read."""
    if not request.body or len(request.body) > BODY_BYTES_MAX:
        return None
    media = request.headers.get("content-type", "").partition(";")[0].strip() or JSON
    if media.startswith("application/apply-patch"):
        media = YAML
    try:
        return codec.load(request.body, JSON if media.endswith("+json") else media)
    except (ValueError, ApiError):
        return None


def _shown(answer: Answer) -> Any:
    """The answer's object; TRUNCATED when it is too big, None when it is none."""
    if isinstance(answer, Upgrade):
        return None
    body: Any = answer.body
    if not isinstance(body, (bytes, Pieces)) or not len(body):
        return None
    if len(body) > BODY_BYTES_MAX:
        return TRUNCATED
    data = body if isinstance(body, bytes) else b"".join(body.pieces())
    try:
        return codec.load(data, answer.content_type.partition(";")[0])
    except (ValueError, ApiError):
        return None


def _put(out: Object, key: str, value: Any, rule: Rule) -> None:
    if value is None:
        return
    if rule.omit_managed_fields and isinstance(value, dict):
        for obj in (value, *(value.get("items") or ())):
            if isinstance(obj, dict) and isinstance(obj.get("metadata"), dict):
                obj["metadata"].pop("managedFields", None)
    out[key] = value


def build(config: Config, metrics: Metrics) -> Auditor | None:
    """The auditor that the flags ask for; None when there is none. Raises ValueError (PolicyError, WebhookConfigError), OSError."""
    if not config.log_path and config.webhook_config_file is None:
        return None
    if config.policy_file is None:
        raise ValueError("--audit-log-path and --audit-webhook-config-file need --audit-policy-file")
    auditor = Auditor(policies.load(config.policy_file), (), metrics)
    endpoint = Endpoint(config.webhook_config_file) if config.webhook_config_file is not None else None
    if config.log_path:
        auditor.backends.append(LogBackend(config.log_path, size_mb=config.log_size_mb, backups=config.log_backups, age_days=config.log_age_days))
    if endpoint is not None:
        auditor.backends.append(WebhookBackend(endpoint, auditor.lost, batch_seconds=config.webhook_batch_seconds))
    return auditor
