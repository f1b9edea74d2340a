"""EventRecorder: tells users what a component did, in Event objects that `kubectl describe` shows.

`event` never waits, never raises, and never costs the API server more than a bound: equal events become one with a count, many that
differ only in their words become one "(combined from similar events)", and an object that keeps on earning events is throttled
(client-go's EventCorrelator and its numbers). What does not fit into the queue is dropped: events are for people, not for programs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.rest import Client
from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor

QUEUE_EVENTS_MAX = 1000
REMEMBERED_MAX = 4096  # least recently used go first
SIMILAR_MAX = 10  # events that differ only in their message, before they are combined
SIMILAR_WINDOW_SECONDS = 600.0
SPAM_BURST = 25  # events of one object ...
SPAM_REFILL_SECONDS = 300.0  # ... then one per so many seconds
MESSAGE_BYTES_MAX = 1024
SEND_ATTEMPTS_MAX = 3

log = logs.get("events")

Object = dict[str, Any]


def reference(obj: Object) -> Object:
    """The ObjectReference of an object; one that is a reference already (no metadata) comes back as it is."""
    meta = obj.get("metadata")
    if meta is None:
        return {k: obj[k] for k in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath") if obj.get(k)}
    ref = {"kind": obj.get("kind"), "apiVersion": obj.get("apiVersion"), **{k: meta.get(k) for k in ("namespace", "name", "uid", "resourceVersion")}}
    return {k: v for k, v in ref.items() if v}


class _Lru(OrderedDict[Any, Any]):
    def fetch(self, key: Any) -> Any:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def keep(self, key: Any, value: Any) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > REMEMBERED_MAX:
            self.popitem(last=False)


@dataclass(slots=True)
class _Similar:
    last: float
    messages: set[str] = field(default_factory=set)


class Correlator:
    """Which events to write, and how: pure, time is an argument.

    `correlate(event, now)` gives None (throttled), ("create", event) or ("patch", event): the one known by metadata.name, with its new
    count, message and lastTimestamp.
    """

    def __init__(self) -> None:
        self._similar = _Lru()  # what it is about, without the message -> _Similar
        self._known = _Lru()  # with the message -> the Event as last written
        self._spam = _Lru()  # object -> (tokens, time)

    def correlate(self, event: Object, now: float) -> tuple[str, Object] | None:
        ref, source = event["involvedObject"], event["source"]
        about = (source["component"], source.get("host"), ref.get("kind"), ref.get("namespace"), ref.get("name"), ref.get("uid"), ref.get("fieldPath"))
        if not self._allowed(about, now):
            return None
        kind = (*about, event["type"], event["reason"])
        key: tuple[Any, ...] = (*kind, event["message"])
        if self._too_many(kind, event["message"], now):
            key = (*kind, None)
            event["message"] = f"(combined from similar events): {event['message']}"[:MESSAGE_BYTES_MAX]
        known = self._known.fetch(key)
        if known is None:
            self._known.keep(key, event)
            return "create", event
        merged = {**known, "count": known["count"] + 1, "message": event["message"], "lastTimestamp": event["lastTimestamp"]}
        self._known.keep(key, merged)
        return "patch", merged

    def _allowed(self, about: tuple[Any, ...], now: float) -> bool:
        tokens, then = self._spam.fetch(about) or (float(SPAM_BURST), now)
        tokens = min(SPAM_BURST, tokens + (now - then) / SPAM_REFILL_SECONDS)
        self._spam.keep(about, (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now))
        return bool(tokens >= 1)

    def _too_many(self, kind: tuple[Any, ...], message: str, now: float) -> bool:
        similar = self._similar.fetch(kind)
        if similar is None or now - similar.last > SIMILAR_WINDOW_SECONDS:
            similar = _Similar(now)
            self._similar.keep(kind, similar)
        similar.last = now
        if len(similar.messages) < SIMILAR_MAX:
            similar.messages.add(message)
        return len(similar.messages) >= SIMILAR_MAX


class EventRecorder:
    """Records events as `component` (`source` and `reportingController`). Give it a supervisor with `start`; until then events wait in the queue."""

    def __init__(self, client: Client, component: str, host: str = "") -> None:
        self.component = component
        self.dropped = 0
        self._client = client
        self._source = {"component": component, **({"host": host} if host else {})}
        self._instance = host
        self._correlator = Correlator()
        self._queue: deque[tuple[str, Object]] = deque()
        self._wake = asyncio.Event()
        self._last_name = 0

    def start(self, supervisor: Supervisor) -> None:
        supervisor.start(f"events {self.component}", self.run)

    def event(self, obj: Object, type: str, reason: str, message: str) -> None:
        """Record `reason` (CamelCase) with `message` about an object or an ObjectReference; `type` is Normal or Warning."""
        try:
            written = self._correlator.correlate(self._make(reference(obj), type, reason, message), clock.monotonic())
        except Exception:
            log.exception("event could not be made", reason=reason)
            return
        if written is None:
            return
        if len(self._queue) >= QUEUE_EVENTS_MAX:
            self.dropped += 1
            return
        self._queue.append(written)
        self._wake.set()

    def _make(self, ref: Object, type: str, reason: str, message: str) -> Object:
        now = clock.now()
        stamp = clock.rfc3339(now)
        self._last_name = max(int(now * 1e9), self._last_name + 1)  # unique within this recorder; the object's name makes it so for all
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{ref['name']}.{self._last_name:x}", "namespace": ref.get("namespace") or "default"},
            "involvedObject": ref,
            "reason": reason,
            "message": message[:MESSAGE_BYTES_MAX],
            "source": self._source,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
            "type": type,
            "eventTime": None,
            "reportingComponent": self.component,
            "reportingInstance": self._instance,
        }

    async def run(self) -> None:
        """Write what is queued until cancelled."""
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            verb, event = self._queue.popleft()
            for attempt in range(SEND_ATTEMPTS_MAX):
                try:
                    await self._send(verb, event)
                    break
                except ApiError as e:
                    if 400 <= e.code < 500 and e.code != 429:  # a namespace that is going away, an event that is there already
                        log.debug("event refused", reason=event["reason"], error=e.message)
                        break
                    await asyncio.sleep(attempt + 1)
            else:
                self.dropped += 1

    async def _send(self, verb: str, event: Object) -> None:
        meta = event["metadata"]
        if verb == "patch":
            patch = {k: event[k] for k in ("count", "message", "lastTimestamp")}
            try:
                await self._client.patch("v1/events", meta["name"], patch, meta["namespace"])
                return
            except ApiError as e:
                if e.code != 404:  # it has expired: write it anew
                    raise
        await self._client.create("v1/events", event, meta["namespace"])
