"""Upkeep: history is kept by time and by bytes, leases expire, the log is cut by snapshots. None of it holds the loop for more than a slice.

Marks (which revision was visible when) are in the log, so that history by time goes on over a restart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastkube._ext.tree import Tree
from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor
from fastkube.store import segments
from fastkube.store.commit import Commits, retrieved
from fastkube.store.feed import SLICE_EVENTS, SLICE_SECONDS
from fastkube.store.interface import Overloaded, StoreError, Unavailable
from fastkube.store.leases import Leases
from fastkube.store.log import WriteAheadLog
from fastkube.store.segments import PAIR

UPKEEP_SECONDS = 1.0
MARK_SECONDS = 10.0  # between notes of which revision was visible when
MARKS_MAX = 10_000
HELD_MAX = 16  # snapshots at a time
SNAPSHOT_OBSOLETE_BYTES_MIN = 64 << 20  # of log that only reads below the compacted revision need, before a snapshot is worth it

log = logs.get("store")


class Upkeep:
    """`revoke(lease)` ends a lease that expired."""

    def __init__(
        self, tree: Tree, commits: Commits, leases: Leases, revoke: Callable[[int], Awaitable[Any]], *, history_seconds: float, history_bytes: int
    ) -> None:
        self._tree = tree
        self._commits = commits
        self._leases = leases
        self._revoke = revoke
        self._history_seconds = history_seconds
        self._history_bytes = history_bytes
        self._log: WriteAheadLog | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)  # (wall time, revision visible then)
        self._snapshotting = asyncio.Lock()
        self._held: list[int] = []  # history from these revisions on is needed by snapshots
        self.trimming = False

    def open(self, loop: asyncio.AbstractEventLoop, supervisor: Supervisor, wal: WriteAheadLog | None, marks: Iterable[tuple[float, int]]) -> None:
        self._loop = loop
        self._log = wal
        self._marks.extend(marks)
        supervisor.start("upkeep", self._run)
        if wal is not None:
            supervisor.start("log", self._run_log)  # by itself, as a snapshot takes its time

    async def _run(self) -> None:
        marked = -MARK_SECONDS
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            if self._commits.failure is not None:
                continue
            await self._expire()
            now = clock.monotonic()
            if now - marked >= MARK_SECONDS and (not self._marks or self._marks[-1][1] != self._tree.visible):
                marked = now
                self._mark().add_done_callback(retrieved)
            self._forget_old()

    async def _run_log(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            if self._commits.failure is None:
                await self.cut_log()

    async def _expire(self) -> None:
        now = clock.monotonic()
        while (lease := self._leases.pop_expired(now)) is not None:
            asyncio.ensure_future(self._revoke(lease)).add_done_callback(retrieved)
            if clock.monotonic() - now > SLICE_SECONDS:
                await asyncio.sleep(0)
                now = clock.monotonic()

    # History

    def _mark(self) -> asyncio.Future[None]:
        wall, visible = clock.now(), self._tree.visible
        future: asyncio.Future[None] = self._loop.create_future()
        if self._commits.failure is not None:
            future.set_exception(Unavailable(str(self._commits.failure)))
            return future
        self._marks.append((wall, visible))
        self._commits.control(future, None, segments.MARK, PAIR.pack(int(wall * 1e6), visible))
        return future

    def _forget_old(self) -> None:
        horizon = clock.now() - self._history_seconds
        revision = 0
        while self._marks and self._marks[0][0] <= horizon:
            revision = self._marks.popleft()[1]
        if revision > self._tree.compacted:
            self._tree.compact(min(revision, self._tree.visible))
            self.trim_soon()

    def check(self) -> None:
        """After each group: is there too much history?"""
        if self._tree.history_bytes > self._history_bytes:
            self.trim_soon()

    def trim_soon(self) -> None:
        if not self.trimming:
            self.trimming = True
            self._loop.call_soon(self._trim)

    def _trim(self) -> None:
        """Free what nobody may read any more, about a millisecond's worth a turn."""
        tree = self._tree
        self.trimming = False
        until = clock.monotonic() + SLICE_SECONDS
        while clock.monotonic() <= until:
            if tree.history_bytes > self._history_bytes and tree.visible_at > tree.log_start:
                oldest = tree.event(min(tree.log_start + SLICE_EVENTS, tree.visible_at - 1))
                tree.compact(oldest.kv.mod_revision)
            before = tree.log_start
            done = tree.prune(min(self._held, default=tree.compacted), SLICE_EVENTS)  # (never above the compacted revision)
            if done and (tree.history_bytes <= self._history_bytes or tree.log_start == before):
                return
        self.trim_soon()

    # The log on disk

    async def cut_log(self) -> None:
        """Make the next segment ready in time; let a snapshot take the place of segments that hold only what is compacted."""
        assert self._log is not None
        await self._log.prepare()
        if self._log.obsolete_bytes(self._tree.compacted) >= max(SNAPSHOT_OBSOLETE_BYTES_MIN, self._tree.live_bytes // 2):
            await self.snapshot()

    async def snapshot(self) -> None:
        """Write the state at the compacted revision. Failures are logged: the log stands for itself."""
        async with self._snapshotting:
            await self._snapshot()

    async def _snapshot(self) -> None:
        assert self._log is not None
        revision = max(self._tree.compacted, 1)
        self._tree.compact(revision)
        self._held.append(revision)
        try:
            leases = [(lease.id, lease.ttl) for lease in self._leases.all()]
            await self._mark()  # when this is on disk, so is what the list of leases has seen
            await self._log.snapshot(self._tree, revision, leases)
        except (OSError, StoreError) as e:
            log.error("snapshot failed, the log is kept", error=str(e))
        finally:
            self._held.remove(revision)
            self.trim_soon()

    @asynccontextmanager
    async def holding(self, revision: int) -> AsyncIterator[int]:
        """Free nothing that is needed to read at `revision` and after. Raises Overloaded when too many do that already."""
        if len(self._held) >= HELD_MAX:
            raise Overloaded("too many requests: several snapshots are being made")
        self._held.append(revision)
        try:
            yield revision
        finally:
            self._held.remove(revision)
            self.trim_soon()
