"""From the files of a directory back to a tree: the newest snapshot, then every segment of the write-ahead log from the snapshot's on.

What cannot be told from a write that never finished, at the very end of the last segment, is cut off: it was never acknowledged. Anything else that is
not as it was written (a flipped bit, a missing segment, a gap in the revisions) is refused with file and offset, never skipped.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastkube._ext import wal
from fastkube._ext.tree import Tree
from fastkube.runtime import logs
from fastkube.store import segments
from fastkube.store.interface import StoreDamaged
from fastkube.store.segments import I64, PAIR

log = logs.get("store")


@dataclass(slots=True)
class Segment:
    """A segment of the log. `first` is the first revision that may stand in it."""

    sequence: int
    first: int


@dataclass(slots=True)
class Recovered:
    """What the files said, beside the tree."""

    store_id: int = 0
    segments: list[Segment] = field(default_factory=list)  # the last one is to be gone on in
    offset: int = 0  # where the last one ends
    crc: int = 0  # where its chain stands
    sealed: tuple[int, int] | None = None  # the same of the one before
    compacted: int = 0  # what was asked for explicitly
    marks: list[tuple[float, int]] = field(default_factory=list)  # (wall time in seconds, revision visible then)
    leases: dict[int, int] = field(default_factory=dict)  # id -> ttl


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size == 0:
            yield memoryview(b"")
            return
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
            m.madvise(mmap.MADV_SEQUENTIAL)
            view = memoryview(m)
            try:
                yield view
            finally:
                view.release()


def recover(directory: Path, tree: Tree) -> Recovered | None:
    """Fill the tree; None when the directory holds no store yet. Raises StoreDamaged."""
    for path in directory.glob("*.tmp"):
        path.unlink()
    found = segments.numbered(directory, "wal")
    snapshots = segments.numbered(directory, "snapshot")
    result = Recovered()
    first = 1
    if snapshots:
        revision, path = snapshots[-1]
        first = _load_snapshot(path, revision, tree, result)
        segments.remove_older(directory, revision, first)
    found = _begun(directory, [(sequence, path) for sequence, path in found if sequence >= first])
    if not snapshots and not found:
        return None
    if snapshots and not found:
        raise StoreDamaged(segments.segment_path(directory, first), 0, "the segment is missing")
    for expected, (sequence, _) in enumerate(found, first):
        if sequence != expected:
            raise StoreDamaged(segments.segment_path(directory, expected), 0, "the segment is missing")
    for sequence, path in found:
        if result.segments:
            result.sealed = result.offset, result.crc
        result.segments.append(Segment(sequence, tree.head + 1))
        _replay_segment(path, sequence, tree, result, last=sequence == found[-1][0])
    tree.publish(tree.head)
    return result


def _begun(directory: Path, found: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Take segments away that were made ready but never written to: those at the end that hold no frame. An only segment with its header stays."""
    while found and _empty(found[-1][1]) and (len(found) > 1 or (found[0][0] == 1 and found[0][1].stat().st_size < segments.HEADER.size)):
        found.pop()[1].unlink()
        segments.sync_directory(directory)
    return found


def _empty(path: Path) -> bool:
    """Whether there is nothing but zeros after the header."""
    with open(path, "rb") as f:
        f.seek(segments.HEADER.size)
        return not f.read(wal.FRAME_HEADER_BYTES).strip(b"\0") and not f.read().strip(b"\0")


def _check_id(path: Path, store_id: int, result: Recovered) -> None:
    if result.store_id and store_id != result.store_id:
        raise StoreDamaged(path, 8, "the file belongs to another store")
    result.store_id = store_id


def _load_snapshot(path: Path, revision: int, tree: Tree, result: Recovered) -> int:
    """-> the sequence of the first segment to replay."""
    keys = 0
    ended = False
    with _mapped(path) as data:
        store_id, number, first, crc = segments.parse_header(path, data, segments.SNAPSHOT_MAGIC)
        _check_id(path, store_id, result)
        if number != revision:
            raise StoreDamaged(path, 16, f"the file is named for revision {revision}, and says {number}")
        tree.restore(revision)

        def on_frame(kind: int, start: int, end: int) -> None:
            nonlocal keys, ended
            if ended:
                raise ValueError("there is more after the end")
            if kind == segments.KEYS:
                keys += tree.load(data[start:end], revision)
            elif kind == segments.LEASES:
                result.leases.update(PAIR.iter_unpack(data[start:end]))
            elif kind == segments.END:
                if I64.unpack(data[start:end])[0] != keys:
                    raise ValueError("keys are missing")
                ended = True
            else:
                raise ValueError(f"no frame of type {kind} belongs there")

        _scan(path, data, crc, on_frame)
    if not ended:
        raise StoreDamaged(path, path.stat().st_size, "the snapshot is cut")
    return first


def _scan(path: Path, data: memoryview, crc: int, on_frame: Callable[[int, int, int], None]) -> tuple[int, int]:
    """Every frame of a file -> (where the last one ends, the CRC chain there)."""
    at = segments.HEADER.size

    def checked(kind: int, start: int, end: int) -> None:
        nonlocal at
        at = start - wal.FRAME_HEADER_BYTES - 1
        on_frame(kind, start, end)

    try:
        return wal.scan(data, segments.HEADER.size, crc, checked)
    except wal.Damaged as e:
        raise StoreDamaged(path, e.offset, str(e)) from e
    except (ValueError, struct.error) as e:
        raise StoreDamaged(path, at, str(e)) from e


def _replay_segment(path: Path, sequence: int, tree: Tree, result: Recovered, *, last: bool) -> None:
    with _mapped(path) as data:
        size = len(data)
        store_id, number, _, crc = segments.parse_header(path, data, segments.WAL_MAGIC)
        _check_id(path, store_id, result)
        if number != sequence:
            raise StoreDamaged(path, 16, f"the file is named for segment {sequence}, and says {number}")
        unsealed = result.sealed  # what the first frame has to say

        def on_frame(kind: int, start: int, end: int) -> None:
            nonlocal unsealed
            if unsealed is not None:
                if kind != segments.SEALED or PAIR.unpack(data[start:end]) != unsealed:
                    raise StoreDamaged(segments.segment_path(path.parent, sequence - 1), unsealed[0], "the segment does not end as the one after it says")
                unsealed = None
            elif kind == wal.TRANSACTION:
                wal.replay(tree, data, start, end)
            else:
                _control(kind, data[start:end], result)

        try:
            result.offset, result.crc = _scan(path, data, crc, on_frame)
            return
        except StoreDamaged as e:
            torn = e.__cause__
            if not (last and isinstance(torn, wal.Damaged) and torn.torn):
                raise
            result.offset, result.crc = torn.offset, torn.crc
    log.warning("cut off a write that never finished", path=str(path), offset=result.offset, bytes=size - result.offset)
    segments.cut(path, result.offset)


def _control(kind: int, payload: memoryview, result: Recovered) -> None:
    """A frame of a segment that is no transaction."""
    if kind == segments.MARK:
        micros, revision = PAIR.unpack(payload)
        result.marks.append((micros / 1e6, revision))
    elif kind == segments.COMPACT:
        result.compacted = max(result.compacted, I64.unpack(payload)[0])
    elif kind == segments.LEASE_GRANT:
        lease, ttl = PAIR.unpack(payload)
        result.leases[lease] = ttl
    elif kind == segments.LEASE_REVOKE:
        result.leases.pop(I64.unpack(payload)[0], None)
    elif kind != segments.SEALED:  # (of a segment whose predecessor is gone)
        raise ValueError(f"no frame of type {kind} belongs there")
