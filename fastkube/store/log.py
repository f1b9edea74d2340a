"""The write-ahead log as files: which segments there are, which one is written to, and how a snapshot takes the place of the oldest.

A segment that is full is left between two groups; the next one was made ready, durably, by a thread before. A snapshot stands for every segment whose
revisions are all compacted.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from fastkube._ext.tree import Tree
from fastkube._ext.wal import Journal
from fastkube.runtime import clock, logs
from fastkube.store import recovery, segments, snapshot
from fastkube.store.segments import PAIR, in_thread

log = logs.get("store")


class WriteAheadLog:
    """`journal` gathers and writes the frames (fastkube/_ext/wal.pyx)."""

    journal: Journal

    def __init__(self, directory: Path, *, fsync: bool, segment_bytes: int) -> None:
        self.directory = directory
        self.segments: list[recovery.Segment] = []  # the last one is written to
        self._fsync = fsync
        self._segment_bytes = segment_bytes
        self.failed = False  # for good: the file is left as it is
        self._next: tuple[int, int] | None = None  # the segment made ready: (descriptor, CRC seed)

    # Open and close

    def open(self, tree: Tree) -> recovery.Recovered:
        """Take the directory, fill the tree, be ready to go on. Raises InUse, StoreDamaged, OSError."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True, mode=0o700)
            segments.sync_directory(self.directory.parent)
        self._lock_fd = segments.lock(self.directory)
        try:
            started = clock.monotonic()
            found = recovery.recover(self.directory, tree)
            if found is None:
                found = recovery.Recovered(store_id=int.from_bytes(os.urandom(8), "little"))
                self._fd, found.crc = segments.create_segment(self.directory, found.store_id, 1, fsync=self._fsync)
                found.offset = segments.HEADER.size
                found.segments.append(recovery.Segment(1, tree.head + 1))
            else:
                self._fd = os.open(segments.segment_path(self.directory, found.segments[-1].sequence), os.O_WRONLY | os.O_CLOEXEC)
                os.lseek(self._fd, found.offset, os.SEEK_SET)
            self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._store_id = found.store_id
        self.segments = found.segments
        self.journal = Journal(self._event_fd, self._fsync)
        if found.sealed is not None and found.offset == segments.HEADER.size:  # its first group was cut off
            self.journal.open(self._fd, found.offset, found.crc, segments.SEALED, PAIR.pack(*found.sealed))
        else:
            self.journal.open(self._fd, found.offset, found.crc)
        self.journal.start_at(tree.log_end)
        log.info("store open", directory=str(self.directory), revision=tree.visible, keys=len(tree), seconds=round(clock.monotonic() - started, 3))
        return found

    def start(self, loop: asyncio.AbstractEventLoop, on_group: Callable[[tuple[str, int, bool] | None], None]) -> None:
        """Start the writing thread. `on_group` is called on the loop for each group that was flushed: with None when it is on disk, else (call, errno, for good)."""
        self._loop = loop
        self._on_group = on_group
        self._thread = threading.Thread(target=self.journal.run, name="store-journal", daemon=True)
        self._thread.start()
        loop.add_reader(self._event_fd, self._readable)

    def _readable(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        if self.journal.finished:
            error = self.journal.result()
            self.failed = error is not None and error[2]
            self._on_group(error)

    def close(self) -> None:
        """Let the directory go. Nothing may be in flight."""
        self._loop.remove_reader(self._event_fd)
        self.journal.stop()
        self._thread.join()
        if not self.failed:
            os.ftruncate(self._fd, self.journal.offset)
        for fd in (self._event_fd, self._fd, self._lock_fd, *(self._next or ())[:1]):
            os.close(fd)

    # Segments

    @property
    def path(self) -> Path:
        """The segment that is written to."""
        return segments.segment_path(self.directory, self.segments[-1].sequence)

    def flush(self, head: int) -> None:
        """Have everything gathered written; `head` is the last revision of the groups before."""
        if self._next is not None and self.journal.offset >= self._segment_bytes:
            (fd, crc), self._next = self._next, None
            self.segments.append(recovery.Segment(self.segments[-1].sequence + 1, head + 1))
            end = self.journal.offset
            self.journal.open(fd, segments.HEADER.size, crc, segments.SEALED, PAIR.pack(end, self.journal.crc))
            old, self._fd = self._fd, fd
            self._loop.run_in_executor(None, _leave, old, end)
        self.journal.flush()

    async def prepare(self) -> None:
        """Make the next segment ready when this one is half full."""
        if self._next is None and self.journal.offset > self._segment_bytes // 2:
            try:
                await in_thread(self._create_next)
            except OSError as e:
                log.error("cannot make the next log segment, going on in this one", error=str(e))

    def _create_next(self) -> None:
        self._next = segments.create_segment(self.directory, self._store_id, self.segments[-1].sequence + 1, fsync=self._fsync)

    def obsolete_bytes(self, compacted: int) -> int:
        """About how much of the log only reads below the compacted revision need."""
        return sum(1 for following in self.segments[1:] if following.first <= compacted + 1) * self._segment_bytes

    async def snapshot(self, tree: Tree, revision: int, leases: Iterable[tuple[int, int]]) -> None:
        """Write the state at `revision`, remove what it replaces. Raises OSError; the log is whole then as before."""
        started = clock.monotonic()
        keep = max(i for i, segment in enumerate(self.segments) if segment.first <= revision + 1)
        first = self.segments[keep].sequence
        path = await snapshot.write(self.directory, self._store_id, tree, revision, leases, first, fsync=self._fsync)
        await in_thread(segments.remove_older, self.directory, revision, first)
        del self.segments[:keep]
        log.info("snapshot written", path=str(path), revision=revision, seconds=round(clock.monotonic() - started, 3))


def _leave(fd: int, end: int) -> None:
    """Give back what was allocated ahead in a segment that is full."""
    try:
        os.ftruncate(fd, end)
    finally:
        os.close(fd)
