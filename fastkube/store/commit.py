"""Group commit: what is evaluated becomes durable in groups, and visible a whole group at a time.

The laws: a group goes to disk when the one before it is decided; the visible revision advances, watchers are fed and futures resolved only after
that, in this order; an answer that may have seen an undecided write waits for it. When the disk does not take a group, that group and everything
evaluated after it is taken back, newest first, and refused: for this once (a full disk) or for good (anything else).

Without a log a group is durable at the end of the loop's turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from fastkube._ext.tree import Event, Tree
from fastkube.runtime import logs
from fastkube.store.interface import NoSpace, StoreError, Unavailable
from fastkube.store.log import WriteAheadLog

log = logs.get("store")

Group = list[tuple[asyncio.Future[Any], Any]]  # who waits, and the answer (a StoreError is raised)


class Commits:
    """`on_visible(revision)` is called for each group, `on_taken_back(events)` after a rollback, newest first."""

    def __init__(self, tree: Tree, on_visible: Callable[[int], None], on_taken_back: Callable[[list[Event]], None]) -> None:
        self.failure: Unavailable | None = Unavailable("the store is not started")
        self._tree = tree
        self._on_visible = on_visible
        self._on_taken_back = on_taken_back
        self._log: WriteAheadLog | None = None
        self._pending: Group = []  # gathered
        self._inflight: Group = []  # on its way to disk
        self._inflight_head = 1  # the last revision that is on its way or visible
        self._undo: list[Callable[[], None]] = []  # of what the tree does not take back itself, oldest first; for all that is not yet durable
        self._undo_inflight = 0
        self._scheduled = False  # a flush is scheduled or a group is on its way

    def open(self, loop: asyncio.AbstractEventLoop, wal: WriteAheadLog | None) -> None:
        self._loop = loop
        self._log = wal
        self._inflight_head = self._tree.visible
        self.failure = None
        if wal is not None:
            wal.start(loop, self._on_group)

    async def close(self, why: Unavailable) -> None:
        """Decide everything evaluated so far, then take nothing more."""
        while self._scheduled and self.failure is None:
            future: asyncio.Future[None] = self._loop.create_future()
            self.control(future, None)
            with contextlib.suppress(StoreError):
                await future
        self.failure = why
        if self._log is not None:
            self._log.close()
            self._log = None

    # What writers call

    def commit(self, future: asyncio.Future[Any], answer: Any) -> None:
        """The tree's log got one transaction: `answer` goes out when it is durable."""
        if self._log is not None:
            self._log.journal.record(self._tree)
        self.control(future, answer)

    def record(self) -> None:
        """The tree's log got one transaction that goes with a control record."""
        if self._log is not None:
            self._log.journal.record(self._tree)

    def control(self, future: asyncio.Future[Any], answer: Any, kind: int = 0, payload: bytes = b"", undo: Callable[[], None] | None = None) -> None:
        """Log a change that is not the tree's (kind 0: none); `undo` takes it back if the disk does not take it."""
        if kind and self._log is not None:
            self._log.journal.control(kind, payload)
        if undo is not None:
            self._undo.append(undo)
        self._pending.append((future, answer))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def answer(self, future: asyncio.Future[Any], answer: Any) -> None:
        """An answer without a change: it waits for the writes that it may have seen."""
        head = self._tree.head
        if head == self._tree.visible:
            resolve(future, answer)
        elif head > self._inflight_head:
            self._pending.append((future, answer))
        else:
            self._inflight.append((future, answer))

    @property
    def gathered_bytes(self) -> int:
        return 0 if self._log is None else self._log.journal.gathered

    # The groups

    def _flush(self) -> None:
        """Send everything gathered on its way."""
        if self.failure is not None:
            return
        before = self._inflight_head
        self._inflight, self._pending = self._pending, []
        self._inflight_head = self._tree.head
        self._undo_inflight = len(self._undo)
        if self._log is not None and self._log.journal.gathered:
            self._log.flush(before)
        else:
            self._on_group(None)

    def _on_group(self, error: tuple[str, int, bool] | None) -> None:
        """The group on its way is decided."""
        if error is not None:
            self._refused(*error)
            return
        done, self._inflight = self._inflight, []
        head = self._inflight_head
        del self._undo[: self._undo_inflight]
        self._undo_inflight = 0
        if self._log is not None and self._log.journal.gathered:
            self._flush()  # the disk works on while this group is handed out
        elif self._pending:
            self._loop.call_soon(self._flush)
        else:
            self._scheduled = False
        self._on_visible(head)
        for future, answer in done:
            resolve(future, answer)

    def _refused(self, call: str, error: int, fatal: bool) -> None:
        assert self._log is not None
        where = f"{self._log.path}: {call}: {os.strerror(error)}"
        why: StoreError
        if fatal:
            why = self.failure = Unavailable(f"the store takes no writes any more, restart it when the disk is sound: {where}")
            log.error("the write-ahead log failed, no more writes are taken", error=where)
        else:
            why = NoSpace(where)
            log.error("the write-ahead log could not grow, writes are refused", error=where)
        taken_back = self._tree.rollback()
        for undo in reversed(self._undo):
            undo()
        self._on_taken_back(taken_back)
        self._log.journal.drop(self._tree.log_end)
        refused = self._inflight + self._pending
        self._inflight, self._pending, self._undo = [], [], []
        self._inflight_head = self._tree.head
        self._scheduled = False
        for future, _ in refused:
            resolve(future, why)


def resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        if isinstance(answer, StoreError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def retrieved(future: asyncio.Future[Any]) -> None:
    """Nobody waits for this one: take note of its failure, so that asyncio does not complain."""
    if not future.cancelled():
        future.exception()
