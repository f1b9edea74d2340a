"""The files of a store's directory: their names, headers and how they come and go.

    lock                        flock of the process that has the store open; holds its pid
    wal-SEQUENCE                write-ahead log segments, consecutive from the snapshot's first one on (hexadecimal, 16 digits)
    snapshot-REVISION           the newest whole state; all that is older is removed once it is durable

Each file starts with a 32-byte header (magic, store id, number, CRC32C), then frames as fastkube/_ext/wal.pyx lays down, their CRC chain seeded with
the header's. Creations and renames are made durable by syncing the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastkube._ext import wal
from fastkube.store.interface import InUse, StoreDamaged

T = TypeVar("T")

SEGMENT_BYTES_MAX = 64 << 20  # a segment is ended after the group that passes this
HEADER = struct.Struct("<8sQQII")  # magic, store id, number (sequence or revision), first segment to replay (snapshots), CRC32C of what is before
WAL_MAGIC = b"FKWAL\x00\x00\x01"
SNAPSHOT_MAGIC = b"FKSNAP\x00\x01"

# Frame types beside wal.TRANSACTION. In segments:
MARK = 2  # i64 wall time in microseconds, i64 revision visible then
COMPACT = 3  # i64 revision
LEASE_GRANT = 4  # i64 id, i64 ttl in seconds
LEASE_REVOKE = 5  # i64 id
SEALED = 6  # i64 where the segment before ends, i64 where its CRC chain stands there: the first frame of each segment but the first
# In snapshots:
KEYS = 16  # what Tree.dump gave
LEASES = 17  # pairs of i64 id, i64 ttl
END = 18  # i64 number of keys

I64 = struct.Struct("<q")
PAIR = struct.Struct("<qq")


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run `work` in a thread, to its end even when the caller is cancelled: a descriptor must not be closed under it."""
    future = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def header(magic: bytes, store_id: int, number: int, first_segment: int = 0) -> bytes:
    body = struct.pack("<8sQQI", magic, store_id, number, first_segment)
    return body + struct.pack("<I", wal.crc32c(body))


def parse_header(path: Path, data: bytes | memoryview, magic: bytes) -> tuple[int, int, int, int]:
    """-> (store id, number, first segment, CRC to seed the chain with). Raises StoreDamaged."""
    head = bytes(data[: HEADER.size])
    if len(head) < HEADER.size:
        raise StoreDamaged(path, 0, "the file's header is cut")
    found, store_id, number, first_segment, crc = HEADER.unpack(head)
    if found != magic:
        raise StoreDamaged(path, 0, "this is no file of a store of this version")
    if wal.crc32c(head[:-4]) != crc:
        raise StoreDamaged(path, 0, "the file's header does not match its checksum")
    return store_id, number, first_segment, crc


def segment_path(directory: Path, sequence: int) -> Path:
    return directory / f"wal-{sequence:016x}"


def snapshot_path(directory: Path, revision: int) -> Path:
    return directory / f"snapshot-{revision:016x}"


def numbered(directory: Path, prefix: str) -> list[tuple[int, Path]]:
    """The files PREFIX-NUMBER there, by number."""
    found = []
    for path in directory.iterdir():
        digits = path.name.removeprefix(prefix + "-")
        if digits != path.name and len(digits) == 16:
            with contextlib.suppress(ValueError):
                found.append((int(digits, 16), path))
    return sorted(found)


def remove_older(directory: Path, revision: int, sequence: int) -> None:
    """Remove what the snapshot of `revision`, from which segment `sequence` goes on, replaces. To free a large file takes the kernel milliseconds."""
    for number, path in numbered(directory, "snapshot"):
        if number < revision:
            path.unlink()
    for number, path in numbered(directory, "wal"):
        if number < sequence:
            path.unlink()


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cut(path: Path, size: int) -> None:
    """Shorten a file, durably."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def create_segment(directory: Path, store_id: int, sequence: int, *, fsync: bool = True) -> tuple[int, int]:
    """Make an empty segment, durably -> (file descriptor at its end, CRC seed)."""
    head = header(WAL_MAGIC, store_id, sequence)
    path = segment_path(directory, sequence)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, head) != len(head):
            raise OSError(28, "No space left on device", str(path))
        if fsync:
            os.fsync(fd)
            sync_directory(directory)
    except BaseException:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd, HEADER.unpack(head)[4]


def lock(directory: Path) -> int:
    """Take the directory for this process -> the descriptor that holds the lock. Raises InUse."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise InUse(f"the store's directory {directory} is in use by another process" + (f" (pid {holder})" if holder else "")) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
