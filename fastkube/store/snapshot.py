"""A snapshot: the whole state at one revision in one file, written while the store goes on.

The tree keeps every version that stood at the revision for as long as it takes (the caller holds compaction back), so a plain walk in slices sees one
instant; each slice is encoded on the loop (at most a millisecond) and written by a thread. The file gets its name only when it is durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fastkube._ext import wal
from fastkube._ext.tree import Tree
from fastkube.store import segments
from fastkube.store.segments import I64, PAIR, in_thread

SLICE_BYTES = 512 << 10  # of keys and values, encoded at one go


async def write(
    directory: Path, store_id: int, tree: Tree, revision: int, leases: Iterable[tuple[int, int]], first_segment: int, *, fsync: bool = True
) -> Path:
    """Write the state at `revision`, from which the log goes on in `first_segment`. `leases`: (id, ttl). Raises OSError."""
    path = segments.snapshot_path(directory, revision)
    beside = path.with_suffix(".tmp")
    fd = await in_thread(os.open, beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        head = segments.header(segments.SNAPSHOT_MAGIC, store_id, revision, first_segment)
        crc = segments.HEADER.unpack(head)[4]
        await in_thread(_write_all, fd, head)
        packed = b"".join(PAIR.pack(lease, ttl) for lease, ttl in leases)
        after: bytes | None = None
        keys = 0
        data, crc = wal.frame(segments.LEASES, packed, crc)
        while True:
            await in_thread(_write_all, fd, data)
            payload, after, n = tree.dump(after, revision, SLICE_BYTES)
            keys += n
            data, crc = wal.frame(segments.KEYS, payload, crc)
            if after is None:
                break
        end, crc = wal.frame(segments.END, I64.pack(keys), crc)
        await in_thread(_finish, fd, data + end, beside, path, fsync)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return path


def _finish(fd: int, data: bytes, beside: Path, path: Path, fsync: bool) -> None:
    _write_all(fd, data)
    if fsync:
        os.fsync(fd)
    os.replace(beside, path)
    if fsync:
        segments.sync_directory(path.parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
