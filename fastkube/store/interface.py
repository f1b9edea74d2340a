"""The store, as the API server sees it: keys and bytes with revisions, in etcd's terms (etcd API v3 guarantees).

Laws that every engine keeps:

1. One log. Each transaction that changes something takes the next revision; the tree, watches, snapshots are views of the log.
2. Durable before visible. A write is evaluated against the head (all writes before it, synced or not) at the moment of the
   call, synchronously; it becomes visible to reads and watches, and its future is done, only after its frame is on disk.
   Nobody ever sees a revision that a crash could take back. An answer that depends on an unsynced write waits for it.
3. A watch is fed by the commit: every event with revision >= start, once, in revision order, all events of one revision
   together; or `Compacted` when the start is no longer in history. A reader too slow for its buffer is cancelled, nobody waits.
4. Reads never wait and never copy: `get` and `range` answer from memory at the visible revision or any revision in history.
   The `value` of a KeyValue is the very bytes object that was put; handing it on costs a reference.

Engines: `fastkube.store.embedded.EmbeddedStore` (default), a real etcd cluster behind the same tree (issue 3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fastkube._ext.tree import Event, KeyValue

__all__ = ["Event", "KeyValue"]  # what the kernel makes is what readers get; fastkube/_ext/tree.pyi says what is in them


@dataclass(slots=True)
class Put:
    key: bytes
    value: bytes | None  # None: the one that stands there (KeyNotFound when there is none)
    lease: int | None = 0  # None: the one that stands there (KeyNotFound)
    revision_at: int = -1  # where in `value` the decimal revision of this write is to be inserted; -1: nowhere
    attrs: Any = None


@dataclass(slots=True)
class Delete:
    key: bytes
    end: bytes = b""  # exclusive; b"": just `key`


@dataclass(slots=True)
class Range:
    """A read inside a transaction: it sees what the operations before it have done."""

    key: bytes
    end: bytes = b""  # exclusive; b"": just `key`
    revision: int = 0  # 0: as the transaction sees it
    limit: int = 0
    count_only: bool = False


@dataclass(slots=True)
class Compare:
    key: bytes
    target: Literal["version", "create", "mod", "value", "lease"]
    op: Literal["=", "!=", ">", "<"]
    operand: int | bytes
    end: bytes = b""  # exclusive: every key of the range must hold; where there is none, one with zeros does (and no value)


@dataclass(slots=True)
class Txn:
    """A transaction, as an operation of another one. All comparisons, its own too, are made before anything is changed."""

    compare: Sequence[Compare]
    success: Sequence[Operation]
    failure: Sequence[Operation] = ()


Operation = Put | Delete | Range | Txn


@dataclass(slots=True)
class TxnResult:
    succeeded: bool
    revision: int  # the store's revision after the transaction
    results: list[Any]  # per operation: Put -> the KeyValue written; Delete -> list of the KeyValues deleted; Range -> RangeResult; Txn -> TxnResult


@dataclass(slots=True)
class LeaseStatus:
    ttl: int  # seconds, as granted
    remaining: float  # seconds
    keys: list[bytes]  # in order


@dataclass(slots=True)
class RangeResult:
    kvs: list[KeyValue]
    more: bool  # the limit cut the range
    count: int  # how many keys the whole range holds
    revision: int  # of `range`: what it was read at; in a transaction: the store's at that point of it


class StoreError(Exception):
    """Base of what a store refuses."""


class CompareFailed(StoreError):
    """`expect` did not hold; `current` is what stands there (None: nothing)."""

    def __init__(self, current: KeyValue | None) -> None:
        super().__init__("compare failed")
        self.current = current


class Compacted(StoreError):
    """The revision asked for is no longer in history; `compacted` is the revision below which nothing is left."""

    def __init__(self, compacted: int) -> None:
        super().__init__(f"required revision has been compacted ({compacted})")
        self.compacted = compacted


class FutureRevision(StoreError):
    """The revision asked for has not been reached."""


class NoSpace(StoreError):
    """The space quota is used up; writes are refused until compaction makes room."""


class Unavailable(StoreError):
    """The writer stopped for good (failed fsync, closed store); reads go on."""


class Overloaded(StoreError):
    """More unsynced bytes wait for the disk than the store takes; try again later (etcd: too many requests)."""


class TooLarge(StoreError):
    """More bytes than one write may have."""


class KeyNotFound(StoreError):
    """A put is to keep the value or the lease of a key that does not exist."""


class LeaseNotFound(StoreError):
    """There is no such lease."""


class LeaseExists(StoreError):
    """A lease of this id exists already."""


class DuplicateKey(StoreError):
    """A transaction writes the same key twice."""


class InUse(StoreError):
    """Another process has the store's directory open."""


class StoreDamaged(StoreError):
    """What is on disk is not what was written: `path`, `offset` in bytes, and what is wrong. Nothing is skipped, nothing repaired."""

    def __init__(self, path: Path, offset: int, why: str) -> None:
        super().__init__(f"{path} is damaged at offset {offset}: {why}")
        self.path = path
        self.offset = offset


class WatchCancelled(StoreError):
    """The watcher did not keep up and was cut off; watch again from a fresh revision."""


class Watcher(Protocol):
    """Events of one range. Take them with `await next()` or through the callback given at `watch`."""

    async def next(self) -> Sequence[Event]:
        """The next batch, never empty; raises Compacted or WatchCancelled when it cannot go on."""
        ...

    @property
    def synced(self) -> bool:
        """Whether it has been handed everything up to the visible revision."""
        ...

    def close(self) -> None: ...


class Store(Protocol):
    revision: int  # the visible revision: all of it is on disk

    @property
    def failure(self) -> StoreError | None:
        """Why no writes are taken, once they are not: before the start, after the end, after a failed fsync."""
        ...

    @property
    def compacted(self) -> int:
        """Reads below it raise Compacted."""
        ...

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None: ...

    def range(self, key: bytes, end: bytes, revision: int = 0, limit: int = 0) -> RangeResult:
        """Keys in [key, end) in order, at `revision` (0: the visible one). `end` b"\\0" means to the end of the key space."""
        ...

    def put(self, key: bytes, value: bytes, *, expect: int | None = None, lease: int = 0, revision_at: int = -1, attrs: Any = None) -> Awaitable[KeyValue]:
        """Write if the key's mod_revision is `expect` (0: it must not exist; None: always). Raises CompareFailed through the future."""
        ...

    def delete(self, key: bytes, *, expect: int | None = None) -> Awaitable[tuple[int, KeyValue | None]]:
        """Delete -> (revision, what was deleted or None)."""
        ...

    def txn(self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()) -> Awaitable[TxnResult]:
        """All or nothing, in one revision. Raises what puts and ranges raise, DuplicateKey."""
        ...

    def watch(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        on_events: Callable[[Sequence[Event]], None] | None = None,
        on_end: Callable[[StoreError], None] | None = None,
    ) -> Watcher:
        """Events of [key, end) (b"": just the key) with revision >= `start` (0: after the visible one).

        With `on_events` the batches are handed over synchronously, in the event loop, as each commit becomes visible (history
        first); the callback must be quick and must not raise. Nothing is handed over inside the call of `watch` itself. `on_end` is told
        once, later, why a watch that cannot go on has ended (Compacted at once when `start` < `compacted`; Unavailable at close).
        """
        ...

    def count(self, key: bytes, end: bytes, revision: int = 0) -> int:
        """How many keys [key, end) holds, without walking them."""
        ...

    def compact(self, revision: int) -> Awaitable[None]:
        """Forget what only reads below `revision` need; `revision` itself stays readable. Raises Compacted, FutureRevision."""
        ...

    def lease_grant(self, ttl: int, lease: int = 0) -> Awaitable[int]:
        """A lease of `ttl` seconds -> its id (a fresh one for 0). Keys put with it are deleted when it expires. Raises LeaseExists."""
        ...

    def lease_revoke(self, lease: int) -> Awaitable[None]:
        """End a lease and delete its keys. Raises LeaseNotFound."""
        ...

    def lease_keep_alive(self, lease: int) -> int:
        """Start its time to live afresh -> ttl in seconds. Raises LeaseNotFound."""
        ...

    def lease_status(self, lease: int) -> LeaseStatus:
        """Raises LeaseNotFound."""
        ...

    def leases(self) -> list[int]:
        """The ids of all leases, the one that expires first in front."""
        ...

    async def start(self) -> None:
        """Recover from disk and open for writes. Raises StoreError with file and offset when what is there is damaged."""
        ...

    async def close(self) -> None: ...
