"""The log backend: events as JSON lines, to a file that is rotated or to standard output ("-").

Lines are gathered for a turn of the event loop and written by a thread, one write at a time, in order. Nothing is ever dropped: when the disk falls
BUFFER_BYTES_MAX behind, the request that adds a line waits for it (as upstream's blocking mode). Rotated files are called NAME-TIME.EXT.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from fastkube.runtime import clock, logs

BUFFER_BYTES_MAX = 16 << 20
MEGABYTE = 1 << 20
SIZE_MEGABYTES_DEFAULT = 100  # when --audit-log-maxsize is 0
DAY_SECONDS = 86400

log = logs.get("audit")


class LogBackend:
    """`size_mb`: of a file before it is rotated; `backups`: rotated files kept (0: all); `age_days`: how long they are kept (0: for good).

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str, *, size_mb: int = 0, backups: int = 0, age_days: int = 0) -> None:
        self._path = None if path == "-" else Path(path)
        self._size_max = (size_mb or SIZE_MEGABYTES_DEFAULT) * MEGABYTE
        self._backups, self._age_days = backups, age_days
        self._lines: list[bytes] = []
        self._buffered = 0
        self._running: asyncio.Future[None] | None = None
        self._lock = threading.Lock()  # one writer of the file at a time
        self._size = 0
        self._fd = sys.stdout.fileno() if self._path is None else self._open(self._path)

    def _open(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(fd).st_size
        return fd

    def emit(self, event: bytes) -> None:
        self._lines.append(event)
        self._buffered += len(event) + 1
        if self._buffered > BUFFER_BYTES_MAX:
            self._write(self._taken())
        elif self._running is None:
            loop = asyncio.get_running_loop()
            self._running = loop.create_future()
            loop.call_soon(self._flush)

    def _taken(self) -> list[bytes]:
        lines, self._lines, self._buffered = self._lines, [], 0
        return lines

    def _flush(self) -> None:
        lines = self._taken()
        if not lines:
            self._done()
            return
        asyncio.get_running_loop().run_in_executor(None, self._write, lines).add_done_callback(lambda _: self._flush())

    def _done(self) -> None:
        if self._running is not None:
            self._running.set_result(None)
            self._running = None

    def _write(self, lines: list[bytes]) -> None:
        with self._lock:
            try:
                for line in lines:
                    if self._path is not None and self._size and self._size + len(line) + 1 > self._size_max:
                        self._rotate(self._path)
                    data = memoryview(line + b"\n")
                    self._size += len(data)
                    while data:
                        data = data[os.write(self._fd, data) :]
            except OSError as e:
                log.error("audit events cannot be written", file=str(self._path or "-"), events=len(lines), error=str(e))

    def _rotate(self, path: Path) -> None:
        now = datetime.fromtimestamp(clock.now(), UTC)
        target = path.with_name(f"{path.stem}-{now:%Y-%m-%dT%H-%M-%S}.{now.microsecond // 1000:03d}{path.suffix}")
        os.close(self._fd)
        path.rename(target)
        self._fd = self._open(path)
        rotated = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"), reverse=True)
        for i, old in enumerate(rotated):
            with contextlib.suppress(OSError):
                if (self._backups and i >= self._backups) or (self._age_days and clock.now() - old.stat().st_mtime > self._age_days * DAY_SECONDS):
                    old.unlink()

    async def close(self) -> None:
        """What was emitted is written."""
        if self._running is not None:
            await self._running
        self._write(self._taken())
        if self._path is not None:
            os.close(self._fd)
