"""Container logs: CRI's log format read back, followed, and rotated.

A line is `TIME STREAM TAG CONTENT`; TAG starts with P (the line goes on in the next entry of the same stream) or F (it ends). A log file is appended to by the
runtime only; rotation renames it and asks the runtime to open a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastkube.runtime import clock, logs

CHUNK_BYTES = 64 * 1024
FOLLOW_SECONDS = 0.1  # how often a quiet log is looked at while it is followed
LINE_BYTES_MAX = 1 << 20

log = logs.get("containerlogs")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """v1.PodLogOptions, as far as they choose lines. `since`: seconds since the epoch, 0.0 for all; `tail`: -1 for all; `limit_bytes`: 0 for no limit."""

    follow: bool = False
    timestamps: bool = False
    since: float = 0.0
    tail: int = -1
    limit_bytes: int = 0
    stream: str = "All"  # All, Stdout, Stderr


def parse(line: bytes) -> tuple[bytes, bytes, bool, bytes] | None:
    """(time, stream, whether the line ends here, content) of one entry without its newline; None when it is none."""
    parts = line.split(b" ", 3)
    if len(parts) < 3 or parts[1] not in (b"stdout", b"stderr"):
        return None
    return parts[0], parts[1], not parts[2].startswith(b"P"), parts[3] if len(parts) == 4 else b""


def seconds_of(stamp: bytes) -> float:
    """An RFC 3339 time with nanoseconds as seconds since the epoch; 0.0 when it is none."""
    try:
        return clock.parse(stamp.decode())
    except ValueError:
        pass
    try:
        text = stamp.decode("ascii")
        head, _, rest = text.partition(".")
        digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
        return clock.parse(head + rest[len(digits) :]) + float("0." + digits)
    except ValueError:
        return 0.0


def tail_offset(path: str, lines: int) -> int:
    """Where the last `lines` whole lines of a log begin (a line may be several entries)."""
    if lines < 0:
        return 0
    with open(path, "rb") as f:
        at = f.seek(0, os.SEEK_END)
        if lines == 0:
            return at
        behind = b""
        ends = 0
        while at > 0:
            step = min(CHUNK_BYTES, at)
            at -= step
            f.seek(at)
            block = f.read(step) + behind
            entries = block.split(b"\n")
            behind = entries[0]
            offset = at + len(block)
            for entry in reversed(entries[1:]):
                offset -= len(entry)
                if entry:
                    parsed = parse(entry)
                    if parsed and parsed[2]:
                        ends += 1
                        if ends > lines:
                            return offset + len(entry) + 1
                offset -= 1
            if at == 0 and behind:
                parsed = parse(behind)
                if parsed and parsed[2]:
                    ends += 1
                    if ends > lines:
                        return len(behind) + 1
    return 0


def tail(path: str, lines: int) -> list[bytes]:
    """The last `lines` lines' content, each with its newline."""
    return [text for text in _select(path, LogOptions(tail=lines))]


def _select(path: str, options: LogOptions) -> Iterator[bytes]:
    with open(path, "rb") as f:
        f.seek(tail_offset(path, options.tail))
        for line in f:
            text = render(line.rstrip(b"\n"), options)
            if text:
                yield text


def render(entry: bytes, options: LogOptions) -> bytes:
    """What of one entry is shown: b"" when it is not."""
    parsed = parse(entry)
    if parsed is None:
        return b""
    stamp, stream, ends, content = parsed
    if options.stream != "All" and stream.decode() != options.stream.lower():
        return b""
    if options.since and seconds_of(stamp) < options.since:
        return b""
    text = content + b"\n" if ends else content
    return stamp + b" " + text if options.timestamps else text


async def read(path: str, options: LogOptions, alive: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The log in chunks as `options` want it; following, until `alive()` says that the container has ended and everything is read.

    Follows through rotations. FileNotFoundError when there is no log.
    """
    left = options.limit_bytes or 1 << 62
    reader = _Reader(path, tail_offset(path, options.tail))
    try:
        while left > 0:
            was_alive = options.follow and alive()
            out = bytearray()
            for entry in reader.entries():
                out += render(entry, options)
                if len(out) >= CHUNK_BYTES:
                    break
            if out:
                yield bytes(out[:left])
                left -= len(out)
                continue
            if reader.rotated():
                continue
            if not was_alive:
                return
            await asyncio.sleep(FOLLOW_SECONDS)
    finally:
        reader.close()


class _Reader:
    """Whole entries of a growing file, from `offset` on."""

    def __init__(self, path: str, offset: int) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._file.seek(offset)
        self._held = b""
        self._ready: list[bytes] = []

    def entries(self) -> Iterator[bytes]:
        while True:
            while self._ready:
                yield self._ready.pop()
            block = self._file.read(CHUNK_BYTES)
            if not block:
                return
            lines = (self._held + block).split(b"\n")
            self._held = lines.pop()
            if len(self._held) > LINE_BYTES_MAX:
                self._held = b""
            self._ready = lines[::-1]

    def rotated(self) -> bool:
        """Whether the path names another file by now, which is then read from its start."""
        try:
            if os.stat(self.path).st_ino == os.fstat(self._file.fileno()).st_ino:
                return False
        except FileNotFoundError:
            return False
        if block := self._file.read(CHUNK_BYTES):  # written between the last read and the rename
            self._file.seek(-len(block), os.SEEK_CUR)
            return True
        self._file.close()
        self._file = open(self.path, "rb")  # noqa: SIM115
        self._held = b""
        return True

    def close(self) -> None:
        self._file.close()


async def rotate(path: str, max_bytes: int, max_files: int, reopen: Callable[[], Awaitable[None]]) -> bool:
    """Rotate a log that outgrew `max_bytes`: PATH becomes PATH.TIME, older ones are compressed, at most `max_files` remain. Whether it was."""
    try:
        if os.stat(path).st_size < max_bytes:
            return False
    except FileNotFoundError:
        return False
    directory, base = os.path.split(path)
    old = sorted(n for n in os.listdir(directory) if n.startswith(base + ".") and not n.endswith(".tmp"))
    for name in old[: max(0, len(old) - max_files + 2)]:
        os.unlink(os.path.join(directory, name))
    for name in old[max(0, len(old) - max_files + 2) :]:
        if not name.endswith(".gz"):
            await asyncio.to_thread(_compress, os.path.join(directory, name))
    rotated = f"{path}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime(clock.now()))}"
    os.rename(path, rotated)
    try:
        await reopen()
    except BaseException:
        os.rename(rotated, path)
        raise
    return True


def _compress(path: str) -> None:
    beside = path + ".tmp"
    with open(path, "rb") as source, gzip.open(beside, "wb", 6) as out:
        while block := source.read(CHUNK_BYTES):
            out.write(block)
    os.rename(beside, path + ".gz")
    os.unlink(path)


def remove(path: str) -> None:
    """A container's log and its rotated ones."""
    directory, base = os.path.split(path)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name == base or name.startswith(base + "."):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, name))


def pod_log_dir(root: Path, pod: dict) -> Path:
    """ROOT/NAMESPACE_NAME_UID, upstream's layout."""
    meta = pod["metadata"]
    return root / f"{meta.get('namespace', 'default')}_{meta['name']}_{meta['uid']}"
