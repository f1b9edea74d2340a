"""The embedded engine: the revision tree in memory, the write-ahead log on disk, one process.

A write is evaluated against the tree's head and framed at the call; how it becomes durable and visible is in `commit`, how watchers are fed in
`feed`, what keeps history, leases and files within bounds in `upkeep`. Reads never wait.

`EmbeddedStore(None)` is the same without a disk: a group is durable at the end of the loop's turn; no threads, no files, so that it runs on a
virtual clock.
"""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastkube._ext.tree import Event, KeyValue, Tree
from fastkube.runtime import clock, entropy
from fastkube.runtime.tasks import Supervisor
from fastkube.store import recovery, segments
from fastkube.store.commit import Commits, resolve
from fastkube.store.feed import Feed
from fastkube.store.interface import (
    Compacted,
    Compare,
    CompareFailed,
    Delete,
    DuplicateKey,
    FutureRevision,
    KeyNotFound,
    LeaseExists,
    LeaseNotFound,
    LeaseStatus,
    NoSpace,
    Operation,
    Overloaded,
    Put,
    Range,
    RangeResult,
    StoreError,
    TooLarge,
    Txn,
    TxnResult,
    Unavailable,
    Watcher,
)
from fastkube.store.leases import Lease, Leases
from fastkube.store.log import WriteAheadLog
from fastkube.store.segments import I64, PAIR
from fastkube.store.upkeep import Upkeep

PENDING_BYTES_MAX = 64 << 20  # unsynced bytes that may wait for the disk
HISTORY_SECONDS_DEFAULT = 3600.0
HISTORY_BYTES_DEFAULT = 1 << 30
QUOTA_BYTES_DEFAULT = 8 << 30  # of all versions in memory
VALUE_BYTES_MAX = 16 << 20
TXN_BYTES_MAX = 256 << 20  # of all values of one transaction
LEASE_KEYS_PER_REVISION_MAX = 1000  # a lease with more keys is revoked in several revisions, one a group


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
        """`directory` None: in memory only. `fsync` False gives durability over a power cut up. `history_*`: how much of the past can be read and watched."""
        self.revision = 1
        self._quota_bytes = quota_bytes
        self._tree = Tree(Compacted, FutureRevision)
        self._leases = Leases()
        self._feed = Feed(self._tree)
        self._commits = Commits(self._tree, self._visible, self._taken_back)
        self._upkeep = Upkeep(self._tree, self._commits, self._leases, self.lease_revoke, history_seconds=history_seconds, history_bytes=history_bytes)
        self._log = None if directory is None else WriteAheadLog(Path(directory), fsync=fsync, segment_bytes=segment_bytes)
        self._supervisor = Supervisor("store")
        self.get = self._tree.get  # a read is one call into the kernel

    async def start(self) -> None:
        """Recover and open for writes. Raises InUse, StoreDamaged, OSError."""
        self._loop = asyncio.get_running_loop()
        found = recovery.Recovered() if self._log is None else self._log.open(self._tree)
        self._tree.compact(min(found.compacted, self._tree.visible))
        for lease, ttl in found.leases.items():
            self._leases.grant(lease, ttl, clock.monotonic())
        for lease, key in self._tree.leased():
            self._leases.attach(lease, key)
        self.revision = self._tree.visible
        self._feed.open(self._loop)
        self._commits.open(self._loop, self._log)
        self._upkeep.open(self._loop, self._supervisor, self._log, found.marks)

    async def close(self) -> None:
        """Write what is pending, end the watches, let the directory go."""
        await self._supervisor.close()
        why = Unavailable("the store is closed")
        await self._commits.close(why)
        self._feed.close(why)

    @property
    def failure(self) -> StoreError | None:
        return self._commits.failure

    @property
    def compacted(self) -> int:
        return self._tree.compacted

    @property
    def size(self) -> int:
        """Bytes of all versions in memory, history too."""
        return self._tree.live_bytes + self._tree.history_bytes

    @property
    def trimming(self) -> bool:
        """Whether there is something compacted that is still to be freed."""
        return self._upkeep.trimming

    # Reads

    def range(self, key: bytes, end: bytes, revision: int = 0, limit: int = 0) -> RangeResult:
        kvs, count, at = self._tree.range(key, end, revision, limit)
        return RangeResult(kvs, count > len(kvs), count, at)

    def count(self, key: bytes, end: bytes, revision: int = 0) -> int:
        return self._tree.range(key, end, revision, 0, True)[1]

    def watch(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        on_events: Callable[[Sequence[Event]], None] | None = None,
        on_end: Callable[[StoreError], None] | None = None,
    ) -> Watcher:
        return self._feed.watch(key, end, start, on_events, on_end)

    # Writes

    def put(self, key: bytes, value: bytes, *, expect: int | None = None, lease: int = 0, revision_at: int = -1, attrs: Any = None) -> Awaitable[KeyValue]:
        future = self._loop.create_future()
        refusal = self._refusal(len(value), lease)
        if refusal is not None:
            future.set_exception(refusal)
            return future
        tree = self._tree
        event = tree.put(key, value, tree.head + 1, -1 if expect is None else expect, lease, revision_at, attrs)
        if event is None:
            self._commits.answer(future, CompareFailed(tree.newest(key)))
        else:
            if lease or (event.prev is not None and event.prev.lease):
                self._relink(event)
            self._commits.commit(future, event.kv)
        return future

    def delete(self, key: bytes, *, expect: int | None = None) -> Awaitable[tuple[int, KeyValue | None]]:
        future = self._loop.create_future()
        if self._commits.failure is not None:
            future.set_exception(Unavailable(str(self._commits.failure)))
            return future
        tree = self._tree
        if expect is not None:
            current = tree.newest(key)
            if (0 if current is None else current.mod_revision) != expect:
                self._commits.answer(future, CompareFailed(current))
                return future
        event = tree.delete(key, tree.head + 1)
        if event is None:
            self._commits.answer(future, (tree.head, None))
        else:
            self._relink(event)
            self._commits.commit(future, (tree.head, event.prev))
        return future

    def txn(self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()) -> Awaitable[TxnResult]:
        future = self._loop.create_future()
        flat: list[Put | Delete | Range] = []
        chosen = self._choose(Txn(compare, success, failure), flat)
        refusal = self._refusal_of_all(flat)
        if refusal is not None:
            self._commits.answer(future, refusal)
            return future
        revision = self._tree.head + 1
        result = self._apply(chosen, revision)
        if self._tree.head == revision:
            self._commits.commit(future, result)
        else:
            self._commits.answer(future, result)
        return future

    def _choose(self, txn: Txn, flat: list[Put | Delete | Range]) -> _Chosen:
        """Make every comparison, those of nested transactions too, against what stands before any change. `flat` gets what will be done."""
        succeeded = all(map(self._holds, txn.compare))
        operations: list[Put | Delete | Range | _Chosen] = []
        for op in txn.success if succeeded else txn.failure:
            if isinstance(op, Txn):
                operations.append(self._choose(op, flat))
            else:
                flat.append(op)
                operations.append(op)
        return _Chosen(succeeded, operations)

    def _apply(self, chosen: _Chosen, revision: int) -> TxnResult:
        """Do it, at the head. Nothing can fail any more."""
        tree = self._tree
        results: list[Any] = []
        for op in chosen.operations:
            if isinstance(op, Put):
                results.append(self._put(op, revision))
            elif isinstance(op, Delete):
                results.append(self._delete_range(op.key, op.end, revision))
            elif isinstance(op, Range):
                kvs, count, _ = tree.range(op.key, op.end, op.revision, op.limit, op.count_only, op.revision <= 0)
                results.append(RangeResult(kvs, count > len(kvs), count, tree.head))
            else:
                results.append(self._apply(op, revision))
        return TxnResult(chosen.succeeded, tree.head, results)

    def _put(self, op: Put, revision: int) -> KeyValue:
        value, lease = op.value, op.lease
        if value is None or lease is None:
            current = self._tree.newest(op.key)
            assert current is not None  # _refusal_of_all has seen it, and no operation deletes what another one puts
            value = current.value if value is None else value
            lease = current.lease if lease is None else lease
        event = self._tree.put(op.key, value, revision, -1, lease, op.revision_at, op.attrs)
        self._relink(event)
        return event.kv

    def _delete_range(self, key: bytes, end: bytes, revision: int) -> list[KeyValue]:
        deleted = []
        for kv in self._tree.range(key, end, 0, 0, False, True)[0]:
            self._relink(self._tree.delete(kv.key, revision))
            deleted.append(kv)
        return deleted

    def _holds(self, compare: Compare) -> bool:
        if not compare.end:
            return _holds(compare, self._tree.newest(compare.key))
        kvs = self._tree.range(compare.key, compare.end, 0, 0, False, True)[0]
        return all(_holds(compare, kv) for kv in kvs) if kvs else _holds(compare, None)

    def _refusal(self, size: int, lease: int) -> StoreError | None:
        """Why a put may not be taken."""
        if self._commits.failure is not None:
            return Unavailable(str(self._commits.failure))
        if size > VALUE_BYTES_MAX:
            return TooLarge(f"request is too large: a value of {size} bytes, the most is {VALUE_BYTES_MAX}")
        if lease and lease not in self._leases:
            return LeaseNotFound(f"requested lease {lease:x} not found")
        if self._tree.live_bytes + self._tree.history_bytes > self._quota_bytes:
            return NoSpace(f"the store's quota of {self._quota_bytes} bytes is used up")
        if self._commits.gathered_bytes > PENDING_BYTES_MAX:
            return Overloaded("too many requests: the disk does not keep up")
        return None

    def _refusal_of_all(self, operations: Sequence[Put | Delete | Range]) -> StoreError | None:
        """Everything that could fail in a transaction is checked before any of it is done."""
        tree = self._tree
        keys: set[bytes] = set()
        size = 0
        changes = False
        for op in operations:
            if isinstance(op, Put):
                changes = True
                length = 0 if op.value is None else len(op.value)
                size += length
                if (op.value is None or op.lease is None) and tree.newest(op.key) is None:
                    return KeyNotFound("key not found")
                refusal = self._refusal(length, op.lease or 0)
                if refusal is not None:
                    return refusal
                if op.key in keys:
                    return DuplicateKey(f"duplicate key given in txn request: {op.key!r}")
                if op.revision_at > length:
                    raise ValueError(f"revision_at {op.revision_at} is past the end of a value of {length} bytes")
                keys.add(op.key)
            elif isinstance(op, Delete):
                changes = True
        if changes and self._commits.failure is not None:
            return Unavailable(str(self._commits.failure))
        if size > TXN_BYTES_MAX:
            return TooLarge(f"request is too large: a transaction of {size} bytes, the most is {TXN_BYTES_MAX}")
        for op in operations:
            if isinstance(op, Delete) and any(_covers(op, key) for key in keys):
                return DuplicateKey(f"duplicate key given in txn request: {op.key!r}")
            if isinstance(op, Range) and op.revision > 0:
                if op.revision > tree.visible:
                    return FutureRevision(f"required revision {op.revision} is a future revision (the store is at {tree.visible})")
                if op.revision < tree.compacted:
                    return Compacted(tree.compacted)
        return None

    def compact(self, revision: int) -> Awaitable[None]:
        future = self._loop.create_future()
        tree = self._tree
        if self._commits.failure is not None:
            future.set_exception(Unavailable(str(self._commits.failure)))
        elif revision <= tree.compacted:
            future.set_exception(Compacted(tree.compacted))
        elif revision > tree.visible:
            future.set_exception(FutureRevision(f"required revision {revision} is a future revision (the store is at {tree.visible})"))
        else:
            tree.compact(revision)
            self._commits.control(future, None, segments.COMPACT, I64.pack(revision))
            self._upkeep.trim_soon()
        return future

    async def snapshot(self) -> None:
        """Cut the log now; it is done by itself as the log grows."""
        if self._log is not None:
            await self._upkeep.snapshot()

    @asynccontextmanager
    async def held(self, revision: int = -1) -> AsyncIterator[Held]:
        """Hold history from `revision` (-1: the visible one) on until the end, to read all of it in slices. Raises Compacted, FutureRevision."""
        tree = self._tree
        tree.range(b"\0", b"", revision)  # is it there?
        async with self._upkeep.holding(tree.visible if revision < 0 else revision) as at:
            yield Held(tree, at, tree.visible)

    # What the commits tell

    def _visible(self, revision: int) -> None:
        self.revision = revision
        self._feed.publish(revision)
        self._upkeep.check()

    def _taken_back(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kv.lease:
                self._leases.detach(event.kv.lease, event.kv.key)
            if event.prev is not None and event.prev.lease:
                self._leases.attach(event.prev.lease, event.kv.key)

    # Leases

    def _relink(self, event: Event) -> None:
        """Let the leases' key sets follow a change."""
        if event.prev is not None and event.prev.lease:
            self._leases.detach(event.prev.lease, event.kv.key)
        if event.kv.lease:
            self._leases.attach(event.kv.lease, event.kv.key)

    def lease_grant(self, ttl: int, lease: int = 0) -> Awaitable[int]:
        future = self._loop.create_future()
        if self._commits.failure is not None:
            future.set_exception(Unavailable(str(self._commits.failure)))
            return future
        lease = lease or entropy.generator().getrandbits(62) + 1
        if lease in self._leases:
            self._commits.answer(future, LeaseExists("lease already exists"))
            return future
        self._leases.grant(lease, ttl, clock.monotonic())
        self._commits.control(future, lease, segments.LEASE_GRANT, PAIR.pack(lease, ttl), lambda: self._leases.forget(lease))
        return future

    def lease_revoke(self, lease: int) -> Awaitable[None]:
        future = self._loop.create_future()
        found = self._leases.get(lease)
        if self._commits.failure is not None:
            future.set_exception(Unavailable(str(self._commits.failure)))
        elif found is None:
            self._commits.answer(future, LeaseNotFound(f"requested lease {lease:x} not found"))
        else:
            self._leases.forget(lease)  # from here on nothing can be put on it
            keys = sorted(found.keys)
            if len(keys) <= LEASE_KEYS_PER_REVISION_MAX:
                self._revoke(found, keys, future)
            else:
                self._supervisor.once("revoke", self._revoke_slowly(found, keys, future))
        return future

    def _revoke(self, lease: Lease, keys: list[bytes], future: asyncio.Future[None]) -> None:
        if self._delete_leased(lease, keys):
            self._commits.record()
        self._commits.control(future, None, segments.LEASE_REVOKE, I64.pack(lease.id), lambda: self._leases.restore(lease))

    async def _revoke_slowly(self, lease: Lease, keys: list[bytes], future: asyncio.Future[None]) -> None:
        """The lease itself goes last: after a crash on the way it is there to expire again."""
        try:
            while len(keys) > LEASE_KEYS_PER_REVISION_MAX:
                if self._delete_leased(lease, keys[:LEASE_KEYS_PER_REVISION_MAX]):
                    durable: asyncio.Future[None] = self._loop.create_future()
                    self._commits.commit(durable, None)
                    await durable
                keys = keys[LEASE_KEYS_PER_REVISION_MAX:]
            self._revoke(lease, keys, future)
        except StoreError as e:
            self._leases.restore(lease)
            resolve(future, e)
        except asyncio.CancelledError:
            resolve(future, Unavailable("the store is closed"))
            raise

    def _delete_leased(self, lease: Lease, keys: list[bytes]) -> bool:
        """Delete those that still hang on the lease, in one revision."""
        revision = self._tree.head + 1
        for key in keys:
            current = self._tree.newest(key)
            if current is not None and current.lease == lease.id:
                self._tree.delete(key, revision)
        return self._tree.head == revision

    def lease_keep_alive(self, lease: int) -> int:
        found = self._leases.keep_alive(lease, clock.monotonic())
        if found is None:
            raise LeaseNotFound(f"requested lease {lease:x} not found")
        return found.ttl

    def lease_status(self, lease: int) -> LeaseStatus:
        found = self._leases.get(lease)
        if found is None:
            raise LeaseNotFound(f"requested lease {lease:x} not found")
        return LeaseStatus(found.ttl, max(found.deadline - clock.monotonic(), 0.0), sorted(found.keys))

    def leases(self) -> list[int]:
        return [lease.id for lease in sorted(self._leases.all(), key=lambda lease: lease.deadline)]


@dataclass(slots=True)
class Held:
    """All there is from `revision` to `visible`, both included, while writes go on."""

    _tree: Tree
    revision: int
    visible: int

    async def dump(self, slice_bytes: int) -> AsyncIterator[bytes]:
        """What stands at `revision`, by key, as Tree.dump encodes it."""
        after: bytes | None = None
        while True:
            data, after, _ = self._tree.dump(after, self.revision, slice_bytes)
            if data:
                yield data
            if after is None:
                return
            await asyncio.sleep(0)

    async def events(self, slice_events: int) -> AsyncIterator[list[Event]]:
        """Every change after `revision`, up to `visible`."""
        tree = self._tree
        start, stop = tree.position(self.revision + 1), tree.position(self.visible + 1)
        for at in range(start, stop, slice_events):
            yield [tree.event(i) for i in range(at, min(at + slice_events, stop))]
            await asyncio.sleep(0)


class _Chosen(NamedTuple):
    """A transaction whose comparisons are made."""

    succeeded: bool
    operations: list[Any]  # Put | Delete | Range | _Chosen


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt}


def _holds(compare: Compare, kv: KeyValue | None) -> bool:
    actual: Any
    if kv is None:
        if compare.target == "value":
            return False
        actual = 0
    elif compare.target == "mod":
        actual = kv.mod_revision
    elif compare.target == "value":
        actual = kv.value
    elif compare.target == "version":
        actual = kv.version
    elif compare.target == "create":
        actual = kv.create_revision
    else:
        actual = kv.lease
    return _OPERATORS[compare.op](actual, compare.operand)


def _covers(op: Delete, key: bytes) -> bool:
    if not op.end:
        return key == op.key
    return key >= op.key and (op.end == b"\0" or key < op.end)
