"""What is on disk: every truncation of the tail is cut off cleanly, every flipped bit is refused with file and offset, nothing is skipped."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube._ext import wal
from fastkube._ext.tree import Tree
from fastkube.store import recovery, segments
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import CompareFailed, Delete, NoSpace, Put, StoreDamaged, Unavailable

FRAMES_TRIED = 4


def state(tree: Tree):
    return tree.head, [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in tree.range(b"", b"\0")[0]]


def recovered(directory: Path):
    tree = Tree()
    recovery.recover(directory, tree)
    return state(tree)


async def filled(directory: Path, **options) -> list:
    """A store with some of everything; returns its state after each write, by head revision."""
    store = EmbeddedStore(directory, **options)
    await store.start()
    states = {}
    lease = await store.lease_grant(60)
    for i in range(12):
        if i % 4 == 3:
            await store.txn([], [Delete(b"/a/1"), Put(b"/b", b"%d" % i, lease=lease), Put(b"/c/%d" % i, os.urandom(40))])
        else:
            await store.put(b"/a/%d" % (i % 3), b"value-%d" % i)
        states[store.revision] = state(store._tree)
    await store.close()
    return states


def frames(path: Path) -> list[tuple[int, int]]:
    """(start, end) of each frame."""
    data = path.read_bytes()
    found: list[tuple[int, int]] = []

    def on_frame(kind, start, end):
        found.append((start - wal.FRAME_HEADER_BYTES - 1, end + 1))  # with its last byte

    wal.scan(data, segments.HEADER.size, segments.HEADER.unpack(data[: segments.HEADER.size])[4], on_frame)
    return found


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_crc32c_is_its_model(data, seed):
    assert wal.crc32c(data, seed) == wal.crc32c_model(data, seed)


def test_crc32c_known_answer():
    assert wal.crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4


@pytest.mark.parametrize("allocated", [0, 100, 9000])  # zeros that follow: space allocated ahead
async def test_every_truncation_of_the_tail_is_cut_off(tmp_path, allocated):
    states = await filled(tmp_path / "a")
    path = segments.segment_path(tmp_path / "a", 1)
    data, listed = path.read_bytes(), frames(path)
    final = max(states)
    for size in range(listed[-FRAMES_TRIED][0], len(data) + 1):
        path.write_bytes(data[:size] + bytes(allocated))
        whole = sum(1 for _, end in listed if end <= size)
        expected = final - (len(listed) - whole)
        assert recovered(tmp_path / "a") == states[expected], size
        assert frames(path) == listed[:whole] and recovered(tmp_path / "a") == states[expected]
    path.write_bytes(data[: segments.HEADER.size])
    assert recovered(tmp_path / "a") == (1, [])
    path.write_bytes(data[: segments.HEADER.size - 1])  # the very first creation was interrupted
    assert recovered(tmp_path / "a") == (1, [])


async def test_writing_goes_on_after_a_torn_tail(tmp_path):
    await filled(tmp_path)
    path = segments.segment_path(tmp_path, 1)
    os.truncate(path, path.stat().st_size - 3)
    for n in range(3):
        store = EmbeddedStore(tmp_path)
        await store.start()
        assert store.count(b"/new/", b"/new0") == n
        await store.put(b"/new/%d" % n, b"")
        await store.close()


async def test_every_flipped_bit_of_the_log_is_refused(tmp_path):
    await filled(tmp_path)
    path = segments.segment_path(tmp_path, 1)
    data, listed = path.read_bytes(), frames(path)
    first = listed[-FRAMES_TRIED][0]
    for at in [*range(segments.HEADER.size), *range(first, len(data))]:
        for bit in (0, 7):
            flipped = bytearray(data + bytes(at % 2 * 5000))
            flipped[at] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(StoreDamaged) as e:
                recovered(tmp_path)
            frame = 0 if at < segments.HEADER.size else max(start for start, _ in listed if start <= at)
            assert e.value.path == path and frame <= e.value.offset <= at, (at, e.value)
            assert path.read_bytes() == flipped  # nothing was touched


async def test_every_flipped_bit_and_truncation_of_a_snapshot_is_refused(tmp_path):
    store = EmbeddedStore(tmp_path)
    await store.start()
    lease = await store.lease_grant(60)
    for i in range(5):
        await store.put(b"/a/%d" % i, b"v%d" % i, lease=lease)
    await store.compact(store.revision)
    await store.snapshot()
    expected = state(store._tree)
    await store.close()
    assert recovered(tmp_path) == expected
    ((_, path),) = segments.numbered(tmp_path, "snapshot")
    data = path.read_bytes()
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(StoreDamaged) as e:
            recovered(tmp_path)
        assert e.value.path == path and e.value.offset <= at
        path.write_bytes(data[:at])
        with pytest.raises(StoreDamaged):
            recovered(tmp_path)
    path.write_bytes(data)
    assert recovered(tmp_path) == expected


async def test_zeros_that_a_power_cut_left_are_cut_off_but_only_at_the_end(tmp_path):
    states = await filled(tmp_path)
    path = segments.segment_path(tmp_path, 1)
    data = path.read_bytes()
    final = states[max(states)]
    path.write_bytes(data + bytes(4096))
    assert (recovered(tmp_path)) == final
    path.write_bytes(data + b"\x40\0\0\0" + bytes(4096))
    assert (recovered(tmp_path)) == final
    tree = Tree()
    found = recovery.recover(tmp_path, tree)
    big, _ = wal.frame(wal.TRANSACTION, bytes([1] * 3000), found.crc)
    for lost in (0, 600, 1500):  # some of its pages were written, some were not
        path.write_bytes(data + big[:lost] + bytes(1400) + big[lost + 1400 :] + bytes(3000))
        assert (recovered(tmp_path)) == final


async def test_segments_must_be_complete_and_belong_together(tmp_path):
    store = EmbeddedStore(tmp_path / "a", segment_bytes=4096)
    await store.start()
    for _ in range(30):
        await store.put(b"/a", os.urandom(1000))
        await store._upkeep.cut_log()
    expected = state(store._tree)
    await store.close()
    listed = segments.numbered(tmp_path / "a", "wal")
    assert len(listed) > 4 and recovered(tmp_path / "a") == expected
    listed = segments.numbered(tmp_path / "a", "wal")  # without one that was only made ready

    for sequence, path in listed[:-1]:
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(StoreDamaged, match="missing"):
            recovered(tmp_path / "a")
        path.write_bytes(data[:-1])  # torn, but not the last
        with pytest.raises(StoreDamaged) as e:
            recovered(tmp_path / "a")
        assert e.value.path == path
        if sequence > 1:
            shutil.copy(listed[0][1], path)
            with pytest.raises(StoreDamaged, match="named for segment"):
                recovered(tmp_path / "a")
        path.write_bytes(data)
    await filled(tmp_path / "b", segment_bytes=1)
    shutil.copy(segments.segment_path(tmp_path / "b", 1), segments.segment_path(tmp_path / "a", 1))
    with pytest.raises(StoreDamaged, match="another store"):
        recovered(tmp_path / "a")


async def test_log_is_cut_by_snapshots_and_comes_back(tmp_path):
    store = EmbeddedStore(tmp_path, segment_bytes=16 << 10, history_bytes=30_000)
    await store.start()
    lease = await store.lease_grant(1000)
    await store.put(b"/leased", b"", lease=lease)
    for i in range(300):
        await store.put(b"/k/%d" % (i % 7), os.urandom(1000))
        await store._upkeep.cut_log()
        if i % 100 == 99:
            await store.snapshot()
    expected, compacted = state(store._tree), store.compacted
    await store.close()
    assert len(segments.numbered(tmp_path, "wal")) < 10 and len(segments.numbered(tmp_path, "snapshot")) == 1
    store = EmbeddedStore(tmp_path)
    await store.start()
    assert state(store._tree) == expected and 1 < store.compacted <= compacted
    await store.lease_revoke(lease)
    assert store.get(b"/leased") is None
    await store.close()


async def test_snapshot_is_of_one_instant_while_writes_go_on(tmp_path, monkeypatch):
    from fastkube.store import snapshot

    monkeypatch.setattr(snapshot, "SLICE_BYTES", 2000)
    store = EmbeddedStore(tmp_path)
    await store.start()
    for i in range(200):
        await store.put(b"/k/%03d" % i, b"before")
    await store.compact(store.revision)
    then = state(store._tree)
    stop = False

    async def disturb():
        i = 0
        while not stop:
            i += 1
            await store.put(b"/k/%03d" % (i * 37 % 250), b"after")
            await store.delete(b"/k/%03d" % (i * 53 % 250))
            if i % 10 == 0:
                await store.compact(store.revision)

    task = asyncio.create_task(disturb())
    await store.snapshot()
    stop = True
    await task
    now = state(store._tree)
    await store.close()
    tree = Tree()
    ((revision, path),) = segments.numbered(tmp_path, "snapshot")
    recovery._load_snapshot(path, revision, tree, recovery.Recovered())
    assert state(tree) == then and now[0] > then[0]
    assert recovered(tmp_path) == now


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("after", range(1, 6))
async def test_a_failing_disk_stops_the_writer_for_good(tmp_path, call, after):
    store = EmbeddedStore(tmp_path)
    await store.start()
    store._log.journal.fail(call, after, errno.EIO, 10)
    acknowledged = {}
    for i in range(8):
        key = b"/k/%d" % i
        try:
            await store.put(key, b"v")
            acknowledged[key] = b"v"
        except Unavailable as e:
            assert i >= after - 1 and ("Input/output error" in str(e)) and (call in str(e)) and str(tmp_path) in str(e)
    assert len(acknowledged) == after - 1
    assert {kv.key: kv.value for kv in store.range(b"/", b"0").kvs} == acknowledged  # reads go on
    with pytest.raises(Unavailable):
        await store.txn([], [Put(b"/a", b"")])
    with pytest.raises(Unavailable):
        await store.lease_grant(10)
    await store.close()
    _, keys = recovered(tmp_path)
    found = {key: value for key, value, *_ in keys}
    assert acknowledged.items() <= found.items() and len(found) <= after  # the failed one may be there: nobody was told


@pytest.mark.parametrize("partial", [0, 5, 40, 1 << 20])
async def test_a_full_disk_refuses_and_recovers(tmp_path, partial):
    store = EmbeddedStore(tmp_path)
    await store.start()
    lease = await store.lease_grant(50)
    await store.put(b"/k", b"0", lease=lease)
    seen: list = []
    store.watch(b"/", b"0", on_events=seen.extend)
    store._log.journal.fail("write", 1, errno.ENOSPC, partial)
    first = store.put(b"/k", b"1")
    await asyncio.sleep(0)  # the group is on its way now; these wait behind it
    behind = [store.put(b"/k", b"2", expect=3), store.delete(b"/k"), store.put(b"/new", b"", lease=lease), store.lease_revoke(lease), store.lease_grant(5, 99)]
    for future in [first, *behind]:
        with pytest.raises(NoSpace, match="No space left"):
            await future
    assert store.revision == 2 and store.get(b"/k").value == b"0" and store.count(b"/", b"0") == 1 and seen == []
    with pytest.raises(CompareFailed):
        await store.put(b"/k", b"", expect=3)
    assert (await store.put(b"/k", b"good", expect=2)).mod_revision == 3
    assert store.lease_keep_alive(lease) == 50
    assert await store.lease_grant(5, 99) == 99
    await store.put(b"/l", b"", lease=lease)
    await store.lease_revoke(lease)
    expected = state(store._tree)
    assert [e.kv.mod_revision for e in seen] == [3, 4, 5]
    await store.close()
    assert recovered(tmp_path) == expected


LIMITED = """
import asyncio, resource, signal, sys
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import NoSpace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def main():
    store = EmbeddedStore(sys.argv[1])
    await store.start()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    done = 0
    try:
        while True:
            await asyncio.gather(*[store.put(b"/k/%d" % (done + i), bytes(1000)) for i in range(3)])
            done += 3
    except NoSpace as e:
        assert "File too large" in str(e), e
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.put(b"/last", b"")
    print(done, flush=True)
    await store.close()
asyncio.run(main())
"""


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    out = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    done = int(out.splitlines()[-1])
    _, keys = recovered(tmp_path)
    assert sorted(key for key, *_ in keys) == sorted([b"/k/%d" % i for i in range(done)] + [b"/last"]) and 30 <= done < 50


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: wants root")
async def test_a_really_full_disk(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], check=True)
    try:
        store = EmbeddedStore(tmp_path)
        await store.start()
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(100_000))
        done = 0
        with pytest.raises(NoSpace):
            while True:
                await store.put(b"/k/%d" % done, bytes(1000))
                done += 1
        assert store.count(b"/", b"0") == done > 50
        with pytest.raises(NoSpace):
            await store.put(b"/k/%d" % done, bytes(10_000))
        ballast.unlink()
        await store.put(b"/last", b"")
        await store.close()
        assert len(recovered(tmp_path)[1]) == done + 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_segments_know_where_they_begin_under_pipelined_groups(tmp_path):
    """A segment taken for younger than it is would be removed with acknowledged writes in it."""
    store = EmbeddedStore(tmp_path, segment_bytes=8 << 10)
    await store.start()

    async def write(w):
        for i in range(100):
            await store.put(b"/k/%d" % w, bytes(200 + w))
            if w == 0 and i % 3 == 0:
                await store._upkeep.cut_log()

    await asyncio.gather(*[write(w) for w in range(16)])
    listed = store._log.segments
    assert len(listed) > 10
    for segment in listed:
        path = segments.segment_path(tmp_path, segment.sequence)
        data = path.read_bytes()
        firsts = [int.from_bytes(data[start + 13 : start + 21], "little") for start, _ in frames(path) if data[start + 12] == wal.TRANSACTION]
        assert not firsts or firsts[0] == segment.first
    await store.close()


async def test_a_segment_that_lost_its_end_is_refused(tmp_path):
    """Even where whole control frames are gone, which no gap in the revisions tells."""
    store = EmbeddedStore(tmp_path, segment_bytes=2000)
    await store.start()
    while len(store._log.segments) < 3:
        await store.lease_grant(100)
        await store._log.prepare()
    await store.close()
    path = segments.segment_path(tmp_path, 1)
    data, listed = path.read_bytes(), frames(path)
    for shortened in (data[: listed[-2][1]], data[: listed[-2][1]] + bytes(5000), data[: segments.HEADER.size]):
        path.write_bytes(shortened)
        with pytest.raises(StoreDamaged, match="does not end as the one after it says") as e:
            recovered(tmp_path)
        assert e.value.path == path
    path.write_bytes(data + bytes(5000))  # not cut to size yet when the process was killed
    assert recovered(tmp_path)[0] == 1


async def test_the_first_group_of_a_segment_torn(tmp_path):
    store = EmbeddedStore(tmp_path, segment_bytes=2000)
    await store.start()
    n = 0
    while len(store._log.segments) < 2:
        n += 1
        await store.put(b"/a", b"%d" % n)
        await store._log.prepare()
    await store.close()
    path = segments.segment_path(tmp_path, 2)
    data = path.read_bytes()
    for size in range(segments.HEADER.size + 1, len(data)):
        path.write_bytes(data[:size])
        store = EmbeddedStore(tmp_path, segment_bytes=2000)
        await store.start()
        assert store.get(b"/a").value == b"%d" % (n - 1)
        await store.put(b"/a", b"%d" % n)
        await store.close()
        assert recovered(tmp_path)[1][0][1] == b"%d" % n
        if len(frames(path)) == 1:  # gone on in the segment before
            break
