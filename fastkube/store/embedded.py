"""The embedded engine: the revision tree in memory, the write-ahead log on disk, one process.

The way of a write: evaluated against the tree's head and framed at the call; at the end of the loop's turn (or when the group before it is on disk)
all frames gathered go to the journal's thread as one write and one fdatasync; when that is done the visible revision advances, watchers are fed,
futures are resolved. A full disk takes the group back and refuses it; any other failure of the disk stops writes for good. Reads never wait.

`EmbeddedStore(None)` is the same without a disk: a group is durable at the end of the loop's turn; no threads, no files, so that it runs on a
virtual clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from fastkube._ext.tree import Event, KeyValue, Tree
from fastkube._ext.wal import Journal
from fastkube._ext.watch import Hub, Subscription
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor
from fastkube.store import recovery, segments, snapshot
from fastkube.store.interface import (
    Compacted,
    Compare,
    CompareFailed,
    Delete,
    DuplicateKey,
    FutureRevision,
    LeaseExists,
    LeaseNotFound,
    NoSpace,
    Overloaded,
    Put,
    RangeResult,
    StoreError,
    TxnResult,
    Unavailable,
    WatchCancelled,
    Watcher,
)
from fastkube.store.leases import Leases
from fastkube.store.segments import I64, PAIR
from fastkube.store.watch import Watch

PENDING_BYTES_MAX = 64 << 20  # unsynced bytes that may wait for the disk
HISTORY_SECONDS_DEFAULT = 3600.0
HISTORY_BYTES_DEFAULT = 1 << 30
QUOTA_BYTES_DEFAULT = 8 << 30  # of all versions in memory
HOUSEKEEPING_SECONDS = 1.0
MARK_SECONDS = 10.0  # between notes of which revision was visible when
MARKS_MAX = 10_000
SLICE_SECONDS = 0.001  # of one turn of the loop that work in the background takes
SLICE_EVENTS = 200  # of history, between two looks at the clock
LEASE_KEYS_PER_REVISION_MAX = 1000  # a lease with more keys is revoked in several revisions
EXPIRIES_PER_TURN_MAX = 100
SNAPSHOT_OBSOLETE_BYTES_MIN = 64 << 20  # of log that only reads below the compacted revision need

log = logs.get("store")

Group = list[tuple[asyncio.Future[Any], Any]]  # who waits for it, and the answer (a StoreError is raised)


class EmbeddedStore:
    """See `fastkube.store.interface.Store`. Belongs to the event loop that `start` ran on."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        *,
        fsync: bool = True,
        history_seconds: float = HISTORY_SECONDS_DEFAULT,
        history_bytes: int = HISTORY_BYTES_DEFAULT,
        quota_bytes: int = QUOTA_BYTES_DEFAULT,
        segment_bytes: int = segments.SEGMENT_BYTES_MAX,
    ) -> None:
        self.directory = None if directory is None else Path(directory)
        self.revision = 1
        self.failure: Unavailable | None = Unavailable("the store is not started")
        self._fsync = fsync
        self._history_seconds = history_seconds
        self._history_bytes = history_bytes
        self._quota_bytes = quota_bytes
        self._segment_bytes = segment_bytes
        self._tree = Tree(Compacted, FutureRevision)
        self._hub = Hub(self._callback_raised)
        self.get = self._tree.get
        self._leases = Leases()
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        self._watches: dict[Subscription, Watch] = {}
        self._behind: list[Subscription] = []  # watchers that are being fed from history
        self._pumping = False
        self._pending: Group = []  # gathered, not yet with the journal
        self._inflight: Group = []  # with the journal
        self._inflight_head = 1
        self._undo: list[Callable[[], None]] = []  # of what the tree does not take back itself, oldest first; for all that is not yet durable
        self._undo_inflight = 0
        self._scheduled = False
        self._trimming = False
        self._hold: int | None = None  # history from this revision on is needed by a snapshot
        self._journal: Journal | None = None
        self._supervisor = Supervisor("store")
        self._recovered = recovery.Recovered()
        self._next_segment: tuple[int, int] | None = None  # made ready: (descriptor, CRC seed)

    # Open and close

    async def start(self) -> None:
        """Recover and open for writes. Raises InUse, StoreDamaged, OSError."""
        self._loop = asyncio.get_running_loop()
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = segments.lock(self.directory)
            try:
                self._open(self.directory)
            except BaseException:
                os.close(self._lock_fd)
                raise
        self.revision = self._inflight_head = self._tree.visible
        self.failure = None
        self._supervisor.start("housekeeping", self._housekeeping)

    def _open(self, directory: Path) -> None:
        started = clock.monotonic()
        found = recovery.recover(directory, self._tree)
        if found is None:
            found = recovery.Recovered(store_id=int.from_bytes(os.urandom(8), "little"))
            fd, found.crc = segments.create_segment(directory, found.store_id, 1, fsync=self._fsync)
            found.offset = segments.HEADER.size
            found.segments.append(recovery.Segment(1, 2))
        else:
            fd = os.open(segments.segment_path(directory, found.segments[-1].sequence), os.O_WRONLY | os.O_CLOEXEC)
            os.lseek(fd, found.offset, os.SEEK_SET)
        self._recovered = found
        self._tree.compact(min(found.compacted, self._tree.visible))
        self._marks.extend(found.marks)
        for lease, ttl in found.leases.items():
            self._leases.grant(lease, ttl, clock.monotonic())
        for lease, key in self._tree.leased():
            self._leases.attach(lease, key)
        self._fd = fd
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._journal = Journal(self._event_fd, self._fsync)
        self._journal.open(fd, found.offset, found.crc)
        self._journal.start_at(self._tree.log_end)
        self._thread = threading.Thread(target=self._journal.run, name="store-journal", daemon=True)
        self._thread.start()
        self._loop.add_reader(self._event_fd, self._on_synced)
        log.info("store open", directory=str(directory), revision=self._tree.visible, keys=len(self._tree), seconds=round(clock.monotonic() - started, 3))

    async def close(self) -> None:
        """Write what is pending, end the watches, let the directory go."""
        if self.failure is None:
            await self._synced()
            self.failure = Unavailable("the store is closed")
        elif self._journal is None:
            return
        await self._supervisor.close()
        for watch in list(self._watches.values()):
            watch.end(Unavailable("the store is closed"))
        if self._journal is not None:
            self._loop.remove_reader(self._event_fd)
            self._journal.stop()
            self._thread.join()
            self._journal = None
            for fd in (self._event_fd, self._fd, self._lock_fd, *(self._next_segment or ())[:1]):
                os.close(fd)

    async def _synced(self) -> None:
        """Wait until everything evaluated so far is decided."""
        while self._pending or self._inflight or self._scheduled:
            future: asyncio.Future[None] = self._loop.create_future()
            self._answer(future, None)
            with contextlib.suppress(StoreError):
                await future
            await asyncio.sleep(0)

    # Reads (`get` is the tree's own)

    @property
    def compacted(self) -> int:
        return self._tree.compacted

    def range(self, key: bytes, end: bytes, revision: int = 0, limit: int = 0) -> RangeResult:
        kvs, count, at = self._tree.range(key, end, revision, limit)
        return RangeResult(kvs, count > len(kvs), count, at)

    def count(self, key: bytes, end: bytes, revision: int = 0) -> int:
        return self._tree.range(key, end, revision, 0, True)[1]

    # Writes

    def put(self, key: bytes, value: bytes, *, expect: int | None = None, lease: int = 0, revision_at: int = -1, attrs: Any = None) -> Awaitable[KeyValue]:
        future = self._loop.create_future()
        refusal = self._refusal(lease)
        if refusal is not None:
            future.set_exception(refusal)
            return future
        tree = self._tree
        event = tree.put(key, value, tree.head + 1, -1 if expect is None else expect, lease, revision_at, attrs)
        if event is None:
            self._answer(future, CompareFailed(tree.newest(key)))
        else:
            if lease or (event.prev is not None and event.prev.lease):
                self._relink(event)
            self._commit(future, event.kv)
        return future

    def delete(self, key: bytes, *, expect: int | None = None) -> Awaitable[tuple[int, KeyValue | None]]:
        future = self._loop.create_future()
        if self.failure is not None:
            future.set_exception(Unavailable(str(self.failure)))
            return future
        tree = self._tree
        if expect is not None:
            current = tree.newest(key)
            if (0 if current is None else current.mod_revision) != expect:
                self._answer(future, CompareFailed(current))
                return future
        event = tree.delete(key, tree.head + 1)
        if event is None:
            self._answer(future, (tree.head, None))
        else:
            if event.prev.lease:
                self._relink(event)
            self._commit(future, (tree.head, event.prev))
        return future

    def txn(self, compare: Sequence[Compare], success: Sequence[Put | Delete], failure: Sequence[Put | Delete] = ()) -> Awaitable[TxnResult]:
        future = self._loop.create_future()
        succeeded = all(self._holds(c) for c in compare)
        operations = success if succeeded else failure
        refusal = self._refusal_of_all(operations)
        if refusal is not None:
            future.set_exception(refusal)
            return future
        tree = self._tree
        revision = tree.head + 1
        results: list[Any] = []
        for op in operations:
            if isinstance(op, Put):
                event = tree.put(op.key, op.value, revision, -1, op.lease, op.revision_at, op.attrs)
                self._relink(event)
                results.append(event.kv)
            else:
                results.append(self._delete_range(op.key, op.end, revision))
        result = TxnResult(succeeded, tree.head, results)
        if tree.head == revision:
            self._commit(future, result)
        else:
            self._answer(future, result)
        return future

    def _delete_range(self, key: bytes, end: bytes, revision: int) -> list[KeyValue]:
        deleted = []
        for kv in self._tree.range(key, end, 0, 0, False, True)[0]:
            self._relink(self._tree.delete(kv.key, revision))
            deleted.append(kv)
        return deleted

    def _holds(self, compare: Compare) -> bool:
        kv = self._tree.newest(compare.key)
        actual: Any
        if compare.target == "value":
            if kv is None:
                return False
            actual = kv.value
        elif kv is None:
            actual = 0
        else:
            actual = {"version": kv.version, "create": kv.create_revision, "mod": kv.mod_revision, "lease": kv.lease}[compare.target]
        operand: Any = compare.operand
        return {"=": actual == operand, "!=": actual != operand, ">": actual > operand, "<": actual < operand}[compare.op]

    def _refusal(self, lease: int) -> StoreError | None:
        """Why a put may not be taken."""
        if self.failure is not None:
            return Unavailable(str(self.failure))
        if lease and lease not in self._leases:
            return LeaseNotFound(f"requested lease {lease:x} not found")
        if self._tree.live_bytes + self._tree.history_bytes > self._quota_bytes:
            return NoSpace(f"the store's quota of {self._quota_bytes} bytes is used up")
        if self._journal is not None and self._journal.gathered > PENDING_BYTES_MAX:
            return Overloaded("too many requests: the disk does not keep up")
        return None

    def _refusal_of_all(self, operations: Sequence[Put | Delete]) -> StoreError | None:
        """Everything that could fail in a transaction is checked before any of it is done."""
        if self.failure is not None:
            return Unavailable(str(self.failure))
        keys: set[bytes] = set()
        for op in operations:
            if isinstance(op, Put):
                refusal = self._refusal(op.lease)
                if refusal is not None:
                    return refusal
                if op.key in keys:
                    return DuplicateKey(f"duplicate key given in txn request: {op.key!r}")
                if op.revision_at > len(op.value):
                    raise ValueError(f"revision_at {op.revision_at} is past the end of a value of {len(op.value)} bytes")
                keys.add(op.key)
        if keys:
            for op in operations:
                if isinstance(op, Delete) and any(_covers(op, key) for key in keys):
                    return DuplicateKey(f"duplicate key given in txn request: {op.key!r}")
        return None

    def _relink(self, event: Event) -> None:
        """Let the leases' key sets follow a change."""
        if event.prev is not None and event.prev.lease:
            self._leases.detach(event.prev.lease, event.kv.key)
        if event.kv.lease:
            self._leases.attach(event.kv.lease, event.kv.key)

    # Group commit

    def _commit(self, future: asyncio.Future[Any], answer: Any) -> None:
        """Frame what the tree's log got; `answer` goes out when it is durable."""
        if self._journal is not None:
            self._journal.record(self._tree)
        self._pending.append((future, answer))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _answer(self, future: asyncio.Future[Any], answer: Any) -> None:
        """An answer without a change of its own: it waits for the writes that it may have seen."""
        tree = self._tree
        if tree.head == tree.visible:
            _resolve(future, answer)
        elif tree.head > self._inflight_head or not self._inflight:
            self._pending.append((future, answer))
        else:
            self._inflight.append((future, answer))

    def _control(self, future: asyncio.Future[Any], answer: Any, kind: int, payload: bytes, undo: Callable[[], None] | None = None) -> None:
        """Log a change that is not the tree's; `undo` takes it back if the disk does not take it."""
        if self._journal is not None:
            self._journal.control(kind, payload)
        if undo is not None:
            self._undo.append(undo)
        self._pending.append((future, answer))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand everything gathered to the journal."""
        if self.failure is not None:
            return
        if self._journal is not None:
            self._switch_segment()
        self._inflight, self._pending = self._pending, []
        self._inflight_head = self._tree.head
        self._undo_inflight = len(self._undo)
        if self._journal is None:
            self._scheduled = False
            self._done()
        else:
            self._journal.flush()

    def _on_synced(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        journal = self._journal
        if journal is None or not journal.finished:
            return
        error = journal.result()
        if error is not None:
            self._failed(*error)
            return
        done, head = self._inflight, self._inflight_head
        del self._undo[: self._undo_inflight]
        self._inflight = []
        if journal.gathered:
            self._flush()  # the disk works on while this group is handed out
        else:
            self._scheduled = False
        self._publish(head, done)

    def _done(self) -> None:
        done, self._inflight = self._inflight, []
        del self._undo[: self._undo_inflight]
        self._publish(self._inflight_head, done)

    def _publish(self, head: int, done: Group) -> None:
        tree = self._tree
        start = tree.visible_at
        tree.publish(head)
        self.revision = head
        self._hub.feed(tree, start, tree.visible_at)
        for future, answer in done:
            _resolve(future, answer)
        if tree.history_bytes > self._history_bytes and not self._trimming:
            self._trim_soon()

    def _failed(self, call: str, error: int, fatal: bool) -> None:
        """The disk did not take a group."""
        where = f"{segments.segment_path(self.directory, self._recovered.segments[-1].sequence)}: {call}: {os.strerror(error)}"  # type: ignore[arg-type]
        why: StoreError
        if fatal:
            why = self.failure = Unavailable(f"the store takes no writes any more, restart it when the disk is sound: {where}")
            log.error("write-ahead log failed, no more writes are taken", error=where)
        else:
            why = NoSpace(where)
            log.error("write-ahead log could not grow, writes are refused", error=where)
        taken_back = self._tree.rollback()
        for undo in reversed(self._undo):
            undo()
        for event in taken_back:
            if event.kv.lease:
                self._leases.detach(event.kv.lease, event.kv.key)
            if event.prev is not None and event.prev.lease:
                self._leases.attach(event.prev.lease, event.kv.key)
        self._undo.clear()
        if self._journal is not None:
            self._journal.drop(self._tree.log_end)
        refused = self._inflight + self._pending
        self._inflight, self._pending = [], []
        self._inflight_head = self._tree.head
        self._scheduled = False
        for future, _ in refused:
            _resolve(future, why)

    # Watches

    def watch(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        on_events: Callable[[Sequence[Event]], None] | None = None,
        on_end: Callable[[StoreError], None] | None = None,
    ) -> Watcher:
        tree = self._tree
        start = start or tree.visible + 1
        watch = Watch(key, end, start, on_events, on_end, self._detach)
        self._watches[watch.subscription] = watch
        if start > tree.visible:
            self._hub.add(watch.subscription)
        elif start < tree.compacted:
            self._loop.call_soon(watch.end, Compacted(tree.compacted))
        else:
            watch.subscription.position = tree.position(start)
            self._behind.append(watch.subscription)
            self._pump_soon()
        return watch

    def _detach(self, watch: Watch) -> None:
        self._hub.remove(watch.subscription)
        self._watches.pop(watch.subscription, None)

    def _callback_raised(self, subscription: Subscription) -> None:
        log.exception("a watcher's callback raised, the watch ends", key=subscription.key)
        self._watches[subscription].end(WatchCancelled("the watcher's callback raised"))

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Feed watchers from history, about a millisecond a turn; those that reach the present go live in the same instant."""
        self._pumping = False
        behind, self._behind = self._behind, []
        until = clock.monotonic() + SLICE_SECONDS
        for at, subscription in enumerate(behind):
            while not subscription.closed and not subscription.live:
                if clock.monotonic() > until:
                    self._behind += behind[at:]
                    self._pump_soon()
                    return
                self._catch_up(subscription)
        if self._behind:
            self._pump_soon()

    def _catch_up(self, subscription: Subscription) -> None:
        """One slice of history for one watcher."""
        tree = self._tree
        if subscription.position < tree.log_start:
            self._watches[subscription].end(Compacted(tree.compacted))
            return
        batch = self._hub.history(tree, subscription, SLICE_EVENTS)
        if subscription.position == tree.visible_at:
            self._hub.add(subscription)
        if batch:
            try:
                subscription.on_events(batch)
            except Exception:
                self._callback_raised(subscription)

    # Leases

    def lease_grant(self, ttl: int, lease: int = 0) -> Awaitable[int]:
        future = self._loop.create_future()
        if self.failure is not None:
            future.set_exception(Unavailable(str(self.failure)))
            return future
        if not lease:
            lease = entropy.generator().getrandbits(63) | 1
        if lease in self._leases:
            self._answer(future, LeaseExists("lease already exists"))
            return future
        self._leases.grant(lease, ttl, clock.monotonic())
        self._control(future, lease, segments.LEASE_GRANT, PAIR.pack(lease, ttl), lambda: self._forget_lease(lease))
        return future

    def _forget_lease(self, lease: int) -> None:
        self._leases.revoke(lease)

    def lease_revoke(self, lease: int) -> Awaitable[None]:
        future = self._loop.create_future()
        found = self._leases.get(lease)
        if self.failure is not None:
            future.set_exception(Unavailable(str(self.failure)))
        elif found is None:
            self._answer(future, LeaseNotFound(f"requested lease {lease:x} not found"))
        else:
            keys = sorted(found.keys)
            for at in range(0, len(keys), LEASE_KEYS_PER_REVISION_MAX):
                revision = self._tree.head + 1
                for key in keys[at : at + LEASE_KEYS_PER_REVISION_MAX]:
                    self._relink(self._tree.delete(key, revision))
                if self._journal is not None:
                    self._journal.record(self._tree)
            self._leases.revoke(lease)
            self._control(future, None, segments.LEASE_REVOKE, I64.pack(lease), lambda: self._leases.restore(found))
        return future

    def lease_keep_alive(self, lease: int) -> int:
        found = self._leases.keep_alive(lease, clock.monotonic())
        if found is None:
            raise LeaseNotFound(f"requested lease {lease:x} not found")
        return found.ttl

    # History, compaction, snapshots

    def compact(self, revision: int) -> Awaitable[None]:
        future = self._loop.create_future()
        if self.failure is not None:
            future.set_exception(Unavailable(str(self.failure)))
        elif revision <= self._tree.compacted:
            future.set_exception(Compacted(self._tree.compacted))
        elif revision > self._tree.visible:
            future.set_exception(FutureRevision(f"required revision {revision} is a future revision (the store is at {self._tree.visible})"))
        else:
            self._tree.compact(revision)
            self._control(future, None, segments.COMPACT, I64.pack(revision))
            self._trim_soon()
        return future

    def _trim_soon(self) -> None:
        if not self._trimming:
            self._trimming = True
            self._loop.call_soon(self._trim)

    def _trim(self) -> None:
        """Free what nobody may read any more, about a millisecond's worth a turn."""
        tree = self._tree
        self._trimming = False
        until = clock.monotonic() + SLICE_SECONDS
        while clock.monotonic() <= until:
            if tree.history_bytes > self._history_bytes and tree.visible_at > tree.log_start:
                oldest = tree.event(min(tree.log_start + SLICE_EVENTS, tree.visible_at - 1))
                tree.compact(oldest.kv.mod_revision)
            before = tree.log_start
            done = tree.prune(tree.compacted if self._hold is None else min(self._hold, tree.compacted), SLICE_EVENTS)
            if done and (tree.history_bytes <= self._history_bytes or tree.log_start == before):
                return
        self._trim_soon()

    async def _housekeeping(self) -> None:
        """Once a second: what has grown too old goes, leases expire, the log is cut by a snapshot."""
        marked = -MARK_SECONDS
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            if self.failure is not None:
                continue
            now = clock.monotonic()
            for lease in self._leases.expired(now, EXPIRIES_PER_TURN_MAX):
                self.lease_revoke(lease).add_done_callback(_retrieved)  # type: ignore[attr-defined]
            if now - marked >= MARK_SECONDS and (not self._marks or self._marks[-1][1] != self.revision):
                marked = now
                self._mark().add_done_callback(_retrieved)  # type: ignore[attr-defined]
            self._forget_old()
            if self._journal is not None:
                await self._cut_log()

    def _mark(self) -> Awaitable[None]:
        """Note which revision is visible now."""
        wall = clock.now()
        future = self._loop.create_future()
        self._marks.append((wall, self.revision))
        self._control(future, None, segments.MARK, PAIR.pack(int(wall * 1e6), self.revision))
        return future

    def _forget_old(self) -> None:
        horizon = clock.now() - self._history_seconds
        revision = 0
        while self._marks and self._marks[0][0] <= horizon:
            revision = self._marks.popleft()[1]
        if revision > self._tree.compacted:
            self._tree.compact(min(revision, self._tree.visible))
            self._trim_soon()

    def _switch_segment(self) -> None:
        """Between two groups: go on in the next segment when this one is full."""
        if self._next_segment is None or self._journal is None or self._journal.offset < self._segment_bytes:
            return
        (fd, crc), self._next_segment = self._next_segment, None
        last = self._recovered.segments[-1]
        self._recovered.segments.append(recovery.Segment(last.sequence + 1, self._inflight_head + 1))  # not `visible`: the group before may not be published yet
        self._journal.open(fd, segments.HEADER.size, crc)
        old, self._fd = self._fd, fd
        self._loop.run_in_executor(None, os.close, old)

    async def _cut_log(self) -> None:
        """Make the next segment ready in time; replace segments that hold only what is compacted by a snapshot."""
        assert self._journal is not None and self.directory is not None
        listed = self._recovered.segments
        if self._next_segment is None and self._journal.offset > self._segment_bytes // 2:
            try:
                self._next_segment = await self._loop.run_in_executor(None, self._create_segment, listed[-1].sequence + 1)
            except OSError as e:
                log.error("cannot make the next log segment, going on in this one", error=str(e))
        obsolete = sum(1 for following in listed[1:] if following.first <= self._tree.compacted + 1)
        if obsolete * self._segment_bytes >= max(SNAPSHOT_OBSOLETE_BYTES_MIN, self._segment_bytes, self._tree.live_bytes // 2):
            await self.snapshot()

    def _create_segment(self, sequence: int) -> tuple[int, int]:
        assert self.directory is not None
        return segments.create_segment(self.directory, self._recovered.store_id, sequence, fsync=self._fsync)

    async def snapshot(self) -> None:
        """Write the state at the compacted revision and remove the segments and snapshots that it replaces. Errors are logged: the log itself is whole."""
        assert self.directory is not None
        listed = self._recovered.segments
        revision = self._hold = max(self._tree.compacted, 1)
        self._tree.compact(revision)
        keep = max(i for i, segment in enumerate(listed) if segment.first <= revision + 1)
        started = clock.monotonic()
        try:
            leases = [(lease.id, lease.ttl) for lease in self._leases.all()]
            await self._mark()  # what the leases' list may have seen is on disk
            path = await snapshot.write(self.directory, self._recovered.store_id, self._tree, revision, leases, listed[keep].sequence, fsync=self._fsync)
            await self._loop.run_in_executor(None, segments.remove_older, self.directory, revision, listed[keep].sequence)
            del listed[:keep]
            log.info("snapshot written", path=str(path), revision=revision, seconds=round(clock.monotonic() - started, 3))
        except (OSError, StoreError) as e:
            log.error("snapshot failed, the log is kept", error=str(e))
        finally:
            self._hold = None
            self._trim_soon()


def _covers(op: Delete, key: bytes) -> bool:
    if not op.end:
        return key == op.key
    return key >= op.key and (op.end == b"\0" or key < op.end)


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        if isinstance(answer, StoreError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _retrieved(future: asyncio.Future[Any]) -> None:
    """Nobody waits for this one: take note of its failure, so that asyncio does not complain."""
    if not future.cancelled():
        future.exception()
