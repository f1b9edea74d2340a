"""watch: the store's commits, written to the client in the turn of the loop in which they become visible.

Laws:
1. Every change of the selection since the resourceVersion given, once, in order: an object that comes to match is ADDED, one that ceases to is DELETED
   (its last matching state, with the change's resourceVersion). A start no longer in history is one ERROR event with a 410 Status.
2. An event is encoded once per form; all watchers share the bytes (`Event.attrs`).
3. No task and no queue per watcher: the commit's callback writes. A watcher whose peer does not keep up is handed references to events up to
   WATCH_BACKLOG_EVENTS_MAX, then cut off; it resumes from its last resourceVersion.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from fastkube.api import errors, tables
from fastkube.api.errors import ApiError, bad_request
from fastkube.http.message import Request, Response, Writer
from fastkube.runtime import entropy
from fastkube.server.handlers.feeds import Feeds
from fastkube.server.handlers.negotiation import JSON, Form, negotiate
from fastkube.server.handlers.read import include_of, partial, revision_of
from fastkube.server.handlers.selecting import Selected, select
from fastkube.server.registry.endpoint import Endpoint, with_revision
from fastkube.store.interface import Compacted, Event, Store, StoreError

WATCH_BACKLOG_EVENTS_MAX = 16_384
FRAMES_BYTES_MAX = 4 * 1024 * 1024  # of encoded events, kept for watchers that have not had them
WATCH_TURN_BYTES_MAX = 1024 * 1024  # written to one watcher in one turn
WATCH_WRITE_BYTES = 128 * 1024  # put together for one write
WATCH_SECONDS_MIN = 1800  # a watch without timeoutSeconds lasts so long, up to twice that
BOOKMARK_SECONDS = 60
INITIAL_END = "k8s.io/initial-events-end"

Frame = Callable[[Event, str], bytes]


def error_frame(error: ApiError) -> bytes:
    return b'{"type":"ERROR","object":%b}\n' % orjson.dumps(error.status())


class Shared:
    """The frames that events carry: the newest ones, in bounded memory."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event, int]] = deque()
        self._bytes = 0

    def add(self, event: Event, key: Any, frame: bytes) -> None:
        """Keep `frame` with the event, for the other watchers."""
        if event.attrs is None:
            event.attrs = {}
        event.attrs[key] = frame
        self._events.append((event, len(frame)))
        self._bytes += len(frame)
        while self._bytes > FRAMES_BYTES_MAX:
            oldest, size = self._events.popleft()
            oldest.attrs = None
            self._bytes -= size


class Plain:
    """Frames of stored bytes."""

    def __init__(self, endpoint: Endpoint, shared: Shared) -> None:
        self.endpoint = endpoint
        self.shared = shared

    def event(self, event: Event, type_: str) -> bytes:
        frames = event.attrs
        frame: bytes | None = None if frames is None else frames.get(type_)
        if frame is None:
            kv = event.kv
            value = with_revision(event.prev.value, kv.mod_revision) if type_ == "DELETED" and event.prev is not None else kv.value
            frame = b'{"type":"%b","object":%b}\n' % (type_.encode(), value)
            self.shared.add(event, type_, frame)
        return frame

    def state(self, kv: Any) -> bytes:
        return b'{"type":"ADDED","object":%b}\n' % kv.value

    def bookmark(self, revision: int, initial_end: bool = False) -> bytes:
        return b'{"type":"BOOKMARK","object":%b}\n' % orjson.dumps(self.mark(revision, initial_end))

    def mark(self, revision: int, initial_end: bool) -> dict[str, Any]:
        metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {INITIAL_END: "true"}
        return {"kind": self.endpoint.kind, "apiVersion": self.endpoint.api_version, "metadata": metadata}


class Made(Plain):
    """Frames of what is made out of the stored bytes: tables, metadata only, other versions."""

    def __init__(self, endpoint: Endpoint, shared: Shared, form: Form, include: str) -> None:
        super().__init__(endpoint, shared)
        self.form = form
        self.include = include
        self.first = form.as_ == "Table"  # a table's first event has the column definitions

    def _make(self, value: bytes) -> bytes:
        if self.form.as_ == "Table":
            headers, self.first = self.first, False
            return tables.render(self.endpoint.printer, [value], self.include, version=self.form.version, headers=headers)
        return partial(value, self.form.version) if self.form.as_ else value

    def event(self, event: Event, type_: str) -> bytes:
        frames = event.attrs
        key = (type_, self.first, self.endpoint.api_version, self.form.as_, self.form.version, self.include)
        frame: bytes | None = None if frames is None else frames.get(key)
        if frame is None:
            frame = b'{"type":"%b","object":%b}\n' % (type_.encode(), self._make(self._value(event, type_)))
            self.shared.add(event, key, frame)
        self.first = False
        return frame

    def _value(self, event: Event, type_: str) -> bytes:
        if type_ != "DELETED" or event.prev is None:
            return self.endpoint.served(event.kv)
        return with_revision(self.endpoint.served(event.prev), event.kv.mod_revision)

    def state(self, kv: Any) -> bytes:
        return b'{"type":"ADDED","object":%b}\n' % self._make(self.endpoint.served(kv))

    def mark(self, revision: int, initial_end: bool) -> dict[str, Any]:
        mark = super().mark(revision, initial_end)
        if self.form.as_ == "Table":
            return {"kind": "Table", "apiVersion": f"meta.k8s.io/{self.form.version}", "metadata": mark["metadata"], "columnDefinitions": None, "rows": []}
        if self.form.as_:
            mark.update(kind="PartialObjectMetadata", apiVersion=f"meta.k8s.io/{self.form.version}")
        return mark


class Watching:
    """All watches of a server: what ends them, and what sends their bookmarks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.watches: set[Watch] = set()
        self.feeds = Feeds(store)
        self.shared = Shared()
        self.closing = False
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watch: Watch) -> None:
        self.watches.add(watch)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BOOKMARK_SECONDS, self._bookmarks)

    def _bookmarks(self) -> None:
        self._timer = None
        for watch in tuple(self.watches):
            watch.bookmark()
        if self.watches:
            self._timer = asyncio.get_running_loop().call_later(BOOKMARK_SECONDS, self._bookmarks)

    def close(self) -> None:
        """End every watch properly: clients resume elsewhere, or here after the restart."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for watch in tuple(self.watches):
            watch.end()


class Watch:
    """One watch: a Push (http.message). Before `live`, the initial state goes out; events that come meanwhile wait in the backlog."""

    __slots__ = (
        "_backlog",
        "_bookmarks",
        "_everything",
        "_fed",
        "_frames",
        "_initial",
        "_loop",
        "_owner",
        "_pumping",
        "_revision",
        "_scheduled",
        "_selected",
        "_source",
        "_start",
        "_timeout",
        "_timer",
        "_writer",
    )

    def __init__(
        self, owner: Watching, selected: Selected, frames: Plain, start: int, initial: Iterator[bytes] | None, bookmarks: bool, timeout: float
    ) -> None:
        self._owner = owner
        self._selected = selected
        self._everything = selected.everything
        self._frames = frames
        self._start = start  # events from this revision on
        self._revision = start - 1  # the newest that the client has seen
        self._initial = initial
        self._bookmarks = bookmarks
        self._timeout = timeout
        self._backlog: deque[tuple[Event, str]] = deque()
        self._scheduled = self._pumping = False
        self._fed = False  # by a feed shared with others, rather than by a subscription of its own
        self._writer: Writer = None  # type: ignore[assignment]
        self._source: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]

    # ---- Push

    def started(self, writer: Writer) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        if self._owner.closing:
            writer.end()
            return
        selected = self._selected
        self._owner.add(self)
        self._timer = self._loop.call_later(self._timeout, self._expired)
        if not self._join(self._start > self._owner.store.revision):
            self._source = self._owner.store.watch(
                selected.key or selected.start, b"" if selected.key else selected.end, start=self._start, on_events=self.events, on_end=self.ended
            )
        if self._initial is not None:
            self._pump()

    def resumed(self) -> None:
        if (self._initial is not None or self._backlog) and not self._pumping:
            self._pump()

    def closed(self) -> None:
        self._owner.watches.discard(self)
        self._backlog.clear()
        self._initial = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._release()

    def _join(self, current: bool) -> bool:
        """Go over to the feed of the one field value selected, once there is no history to catch up with."""
        field = self._selected.field
        if field is None or not current:
            return False
        self._release()
        self._fed = True
        self._owner.feeds.join(self._frames.endpoint, *field, self)
        return True

    def _release(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()
        if self._fed and self._selected.field is not None:
            self._fed = False
            self._owner.feeds.leave(self._frames.endpoint, *self._selected.field, self)

    # ---- the commit's side

    def events(self, events: Sequence[Event]) -> None:
        frames, seen = self._frames.event, self._revision
        out: list[bytes] = []
        waiting = self._initial is not None or self._backlog or self._writer.paused
        for event in events:
            type_ = self._type(event) if event.kv.mod_revision > seen else ""
            if type_:
                if waiting:
                    self._backlog.append((event, type_))
                else:
                    out.append(frames(event, type_))
        if out:
            self._writer.write(out[0] if len(out) == 1 else b"".join(out))
        self._revision = max(seen, events[-1].kv.mod_revision)
        if not self._fed and self._selected.field is not None and self._source is not None:
            self._join(self._source.synced)
        if len(self._backlog) > WATCH_BACKLOG_EVENTS_MAX:
            self._writer.abort()

    def _type(self, event: Event) -> str:
        """What the event is to this selection; "" when it is nothing."""
        prev = event.prev
        if self._everything:
            return "DELETED" if event.deleted else "MODIFIED" if prev is not None else "ADDED"
        takes = self._selected.takes
        before = prev is not None and takes(prev)
        if event.deleted:
            return "DELETED" if before else ""
        if takes(event.kv):
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else ""

    def ended(self, why: StoreError) -> None:
        if isinstance(why, Compacted):
            self._writer.write(error_frame(errors.gone(f"too old resource version: {self._start - 1} ({why.compacted})")))
        self.end()

    # ---- the client's side

    def _pump(self) -> None:
        """Write initial state, then the backlog, as fast as the peer takes them."""
        self._scheduled, self._pumping = False, True  # a writer may say `resumed` within a write
        writer, written = self._writer, 0
        while not writer.paused and written < WATCH_TURN_BYTES_MAX:
            out, size = [], 0
            while size < WATCH_WRITE_BYTES and (frame := self._next()) is not None:
                out.append(frame)
                size += len(frame)
            if not out:
                break
            writer.write(b"".join(out))
            written += size
        self._pumping = False
        if (self._initial is not None or self._backlog) and not writer.paused and not self._scheduled and (self._fed or self._source is not None):
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _next(self) -> bytes | None:
        if self._initial is not None:
            frame = next(self._initial, None)
            if frame is not None:
                return frame
            self._initial = None
        if self._backlog:
            event, type_ = self._backlog.popleft()
            return self._frames.event(event, type_)
        return None

    def bookmark(self) -> None:
        if self._bookmarks and self._initial is None and not self._backlog and not self._writer.paused:
            current = self._fed or (self._source is not None and self._source.synced)
            self._writer.write(self._frames.bookmark(max(self._owner.store.revision if current else 0, self._revision)))

    def _expired(self) -> None:
        self.bookmark()
        self.end()

    def end(self) -> None:
        self._writer.end()


def watch(watching: Watching, endpoint: Endpoint, request: Request) -> Response:
    """The answer to a watch. ApiError 400, 406, 410 (never a late 410: that is an ERROR event), 422."""
    store = watching.store
    form = negotiate(request)
    if form.media != JSON:
        raise errors.not_acceptable("only application/json is served as a stream of events")
    selected = select(endpoint, request)
    asked = request.param("resourceVersion")
    revision = revision_of(asked)
    match, initial_text = request.param("resourceVersionMatch"), request.param("sendInitialEvents")
    _check(match, initial_text)
    timeout_text = request.param("timeoutSeconds")
    if timeout_text and not (timeout_text.isdecimal() and len(timeout_text) < 10):
        raise bad_request(f'invalid timeoutSeconds "{timeout_text[:64]}"')
    timeout = float(timeout_text) if timeout_text and int(timeout_text) else entropy.jitter(WATCH_SECONDS_MIN, 1.0)
    bookmarks = request.param("allowWatchBookmarks") in ("true", "1")
    frames = Plain(endpoint, watching.shared) if not form.as_ and not endpoint.converts else Made(endpoint, watching.shared, form, include_of(request))
    with_state = initial_text in ("true", "1") or (not initial_text and asked in ("", "0"))
    if not with_state:
        start = revision + 1 if revision else store.revision + 1
        return Response(200, Watch(watching, selected, frames, start, None, bookmarks, timeout), JSON)
    kv = store.get(selected.key) if selected.key else None
    kvs = ([kv] if kv is not None and selected.takes(kv) else []) if selected.key else selected.filter(store.range(selected.start, selected.end).kvs)
    initial = _initial(frames, kvs, store.revision if initial_text and bookmarks else 0)
    return Response(200, Watch(watching, selected, frames, store.revision + 1, initial, bookmarks, timeout), JSON)


def _initial(frames: Plain, kvs: list[Any], mark: int) -> Iterator[bytes]:
    for kv in kvs:
        yield frames.state(kv)
    if mark:
        yield frames.bookmark(mark, True)


def _check(match: str, initial: str) -> None:
    problems = []
    if initial and match != "NotOlderThan":
        problems.append(errors.forbidden_field("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))
    if match and not initial:
        problems.append(errors.forbidden_field("resourceVersionMatch", "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
    if problems:
        raise errors.invalid("ListOptions", "meta.k8s.io", "", problems)
