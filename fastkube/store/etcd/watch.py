"""Watch: many watchers on one stream, each told every event of its range, once, in revision order.

A watcher's events gather while the stream is busy and go out in one answer. A stream that does not drain holds at most PENDING_EVENTS_MAX events; a
watcher beyond that is taken off the store's feed and comes back, from history, when the stream has drained, or is cancelled because that history is
compacted by then (etcd's unsynced watchers). Nobody else waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from fastkube._ext import etcd as wire
from fastkube._ext.tree import Event
from fastkube.runtime import clock
from fastkube.store import interface
from fastkube.store.commit import retrieved
from fastkube.store.etcd import errors, messages
from fastkube.store.etcd.auth import READ, Auth, Caller
from fastkube.store.etcd.errors import EtcdError
from fastkube.store.etcd.member import Member
from fastkube.store.interface import Compacted, StoreError

PENDING_EVENTS_MAX = 10_000  # of one stream, gathered and not yet sent; one commit or slice of history more
ANSWER_BYTES_MAX = 1 << 20  # an answer is ended at the revision that passes this
WATCHERS_MAX = 100_000  # of one stream
EVENT_OVERHEAD_BYTES = 32
NO_WATCH = -1


class Watcher:
    """One watcher of a stream. It is in the stream's queue when it has something to send."""

    def __init__(self, stream: Stream, watch_id: int, r: Any) -> None:
        self.stream = stream
        self.id = watch_id
        self.key = r.key or b"\0"
        self.end = r.range_end
        self.prev_kv = r.prev_kv
        self.fragment = r.fragment
        self.progress_notify = r.progress_notify
        self.no_put = 0 in r.filters
        self.no_delete = 1 in r.filters
        self.pending: list[Event] = []
        self.quiet_since = clock.monotonic()
        self.resume_at = 0  # from where to go on: it is off the feed
        self.handle: interface.Watcher | None = None

    def start(self, revision: int) -> None:
        self.resume_at = 0
        self.handle = self.stream.store.watch(self.key, self.end, start=revision, on_events=self.on_events, on_end=self.on_end)

    def on_events(self, events: Sequence[Event]) -> None:
        stream = self.stream
        if stream.pending_events >= PENDING_EVENTS_MAX:
            self.stop()
            self.resume_at = events[0].kv.mod_revision
            stream.lagging.append(self)
            return
        if self.no_put or self.no_delete:
            events = [event for event in events if not (self.no_delete if event.deleted else self.no_put)]
            if not events:
                return
        if not self.pending:
            stream.enqueue(self)
        self.pending.extend(events)
        stream.pending_events += len(events)

    def on_end(self, why: StoreError) -> None:
        self.handle = None
        if isinstance(why, Compacted):
            self.stream.cancelled(self, why.compacted)
        else:
            self.stream.fail(errors.of(why))

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.close()
            self.handle = None


class Stream:
    """One Watch call."""

    def __init__(self, member: Member, auth: Auth, send: Callable[[bytes], Awaitable[None]], caller: Caller) -> None:
        self.store = member.store
        self.pending_events = 0
        self.lagging: list[Watcher] = []
        self._member = member
        self._header = member.header
        self._auth = auth
        self._send = send
        self._caller = caller
        self._watchers: dict[int, Watcher] = {}
        self._next_id = 0
        self._queue: deque[Watcher | bytes | None] = deque()  # None: a progress report that was asked for
        self._waiting: asyncio.Future[None] | None = None
        self._failure: EtcdError | None = None

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Until the caller is gone. Raises EtcdError when the store ends."""
        reading = asyncio.ensure_future(self._read(requests))
        reading.add_done_callback(retrieved)
        try:
            while True:
                await self._drain()
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
        finally:
            reading.cancel()
            for watcher in self._watchers.values():
                watcher.stop()
            self._watchers.clear()

    def enqueue(self, item: Watcher | bytes | None) -> None:
        self._queue.append(item)
        self._wake()

    def fail(self, why: EtcdError) -> None:
        self._failure = why
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # Requests

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for r in requests:
            kind = r.WhichOneof("request_union")
            if kind == "create_request":
                self._create(r.create_request)
            elif kind == "cancel_request":
                self._cancel(r.cancel_request.watch_id)
            elif kind == "progress_request":
                self.enqueue(None)

    def _create(self, r: Any) -> None:
        key = r.key or b"\0"
        why = ""
        watch_id = NO_WATCH
        if self._auth.enabled:
            try:
                self._auth.check(self._caller, key, r.range_end, READ)
            except EtcdError:
                why = errors.PERMISSION_DENIED.text
        if not why:
            if r.range_end and r.range_end != b"\0" and key >= r.range_end:
                why = "mvcc: watcher range is empty"
            elif r.watch_id in self._watchers and r.watch_id:
                why = "mvcc: duplicate watch ID provided on the WatchStream"
            elif len(self._watchers) >= WATCHERS_MAX:
                why = "etcdserver: too many watchers on one stream"
        if why:
            self._answer(watch_id, created=True, canceled=True, cancel_reason=why)
            return
        watch_id = r.watch_id or self._free_id()
        watcher = self._watchers[watch_id] = Watcher(self, watch_id, r)
        self._answer(watch_id, created=True)
        watcher.start(max(r.start_revision, 0))
        if r.progress_notify:
            self._progress_later(watcher)

    def _free_id(self) -> int:
        while self._next_id in self._watchers:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def _cancel(self, watch_id: int) -> None:
        watcher = self._watchers.pop(watch_id, None)
        if watcher is not None:
            self._forget(watcher)
            self._answer(watch_id, canceled=True)

    def cancelled(self, watcher: Watcher, compacted: int) -> None:
        """Its next revision is compacted. The answer comes after what it has still to send; its header has no revision."""
        del self._watchers[watcher.id]
        h = self._header
        header = messages.ResponseHeader(cluster_id=h.cluster, member_id=h.member, raft_term=h.term)
        self.enqueue(messages.WatchResponse(header=header, watch_id=watcher.id, canceled=True, compact_revision=compacted).SerializeToString())

    def _forget(self, watcher: Watcher) -> None:
        watcher.stop()
        self.pending_events -= len(watcher.pending)
        watcher.pending = []
        if watcher.resume_at:
            self.lagging.remove(watcher)

    def _answer(self, watch_id: int, **fields: Any) -> None:
        self.enqueue(self._member.answer(messages.WatchResponse, watch_id=watch_id, **fields).SerializeToString())

    # Answers

    async def _drain(self) -> None:
        while self._queue or self.lagging:
            while self._queue:
                if self._failure is not None:
                    raise self._failure
                item = self._queue.popleft()
                if isinstance(item, Watcher):
                    await self._send_events(item)
                elif item is not None:
                    await self._send(item)
                elif all(w.handle is not None and w.handle.synced for w in self._watchers.values()):
                    await self._send(self._member.answer(messages.WatchResponse, watch_id=NO_WATCH).SerializeToString())
            lagging, self.lagging = self.lagging, []
            for watcher in lagging:
                watcher.start(watcher.resume_at)
        if self._failure is not None:
            raise self._failure

    async def _send_events(self, watcher: Watcher) -> None:
        pending, watcher.pending = watcher.pending, []
        if not pending:
            return  # cancelled meanwhile
        watcher.quiet_since = clock.monotonic()
        compacted = self.store.compacted
        head = wire.varint(0x10, watcher.id)
        try:
            for events, more in _answers(pending, watcher.fragment, self._member.options.request_bytes_max):
                body = wire.events(events, watcher.prev_kv, compacted)
                fragment = b"\x38\x01" if more else b""
                await self._send(self._header.encode(events[-1].kv.mod_revision) + head + fragment + body)
        finally:
            self.pending_events -= len(pending)

    # Progress

    def _progress_later(self, watcher: Watcher) -> None:
        asyncio.get_running_loop().call_later(self._member.options.progress_seconds, self._progress, watcher)

    def _progress(self, watcher: Watcher) -> None:
        """Tell an idle watcher how far it is."""
        if self._watchers.get(watcher.id) is not watcher or self._failure is not None:
            return
        idle = clock.monotonic() - watcher.quiet_since >= self._member.options.progress_seconds * 0.99
        if idle and watcher.handle is not None and watcher.handle.synced and not watcher.pending:
            self._answer(watcher.id)
        self._progress_later(watcher)


def _answers(events: list[Event], fragment: bool, fragment_bytes: int) -> Iterator[tuple[list[Event], bool]]:
    """Cut what is to be sent into answers of bounded size -> (events, whether the next one goes on with the same revision). Only fragments cut a revision."""
    start = size = 0
    limit = min(ANSWER_BYTES_MAX, fragment_bytes)
    for at, event in enumerate(events):
        n = len(event.kv.key) + len(event.kv.value) + EVENT_OVERHEAD_BYTES
        if at > start and size + n > limit:
            same = event.kv.mod_revision == events[at - 1].kv.mod_revision
            if fragment or not same:
                yield events[start:at], same
                start, size = at, 0
        size += n
    yield events[start:] if start else events, False


class Watch:
    def __init__(self, member: Member, auth: Auth) -> None:
        self._member = member
        self._auth = auth
        self.streams = 0

    async def Watch(self, requests: AsyncIterator[Any], send: Callable[[bytes], Awaitable[None]], caller: Caller) -> None:
        self.streams += 1
        try:
            await Stream(self._member, self._auth, send, caller).run(requests)
        finally:
            self.streams -= 1
