"""Leases, history by time, on a virtual clock; and what goes on in the background meeting the end of the store."""

from __future__ import annotations

import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.store import embedded, recovery, segments
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import LeaseNotFound, NoSpace, Overloaded, TooLarge, Unavailable, WatchCancelled
from fastkube.store.leases import Leases
from fastkube.testing import virtual


def on_virtual_time(test):
    def run():
        virtual.run(test())

    run.__name__ = test.__name__
    return run


@given(st.lists(st.tuples(st.sampled_from(["grant", "revoke", "keep", "pass"]), st.integers(1, 5), st.integers(1, 9)), max_size=60))
def test_leases_expire_when_their_time_is_over_and_not_before(steps):
    leases, model, now = Leases(), {}, 0
    for what, lease, number in steps:
        if what == "grant" and lease not in model:
            leases.grant(lease, number, now)
            model[lease] = (number, now + number)
        elif what == "revoke":
            leases.forget(lease)
            model.pop(lease, None)
        elif what == "keep":
            assert (leases.keep_alive(lease, now) is not None) == (lease in model)
            if lease in model:
                model[lease] = (model[lease][0], now + model[lease][0])
        elif what == "pass":
            now += number
            expired = set()
            while (found := leases.pop_expired(now)) is not None:
                expired.add(found)
                leases.forget(found)
            assert expired == {lease for lease, (_, deadline) in model.items() if deadline <= now}
            for gone in expired:
                del model[gone]
        assert {lease.id for lease in leases.all()} == set(model)


@on_virtual_time
async def test_keys_go_with_their_lease():
    store = EmbeddedStore(None)
    await store.start()
    short, kept = await store.lease_grant(10), await store.lease_grant(10)
    await store.put(b"/short", b"", lease=short)
    await store.put(b"/kept", b"", lease=kept)
    seen: list = []
    store.watch(b"/short", on_events=seen.extend)
    for _ in range(5):
        await asyncio.sleep(5)
        store.lease_keep_alive(kept)
    assert store.get(b"/short") is None and store.get(b"/kept") is not None and [e.deleted for e in seen] == [True]
    with pytest.raises(LeaseNotFound):
        store.lease_keep_alive(short)
    await asyncio.sleep(12)
    assert store.count(b"/", b"0") == 0
    await store.close()


@on_virtual_time
async def test_a_large_lease_goes_in_slices_and_takes_only_what_is_still_its():
    store = EmbeddedStore(None)
    await store.start()
    lease = await store.lease_grant(10)
    await asyncio.gather(*[store.put(b"/%04d" % i, b"", lease=lease) for i in range(3500)])
    before = store.revision
    revoked = asyncio.ensure_future(store.lease_revoke(lease))
    await asyncio.sleep(0)
    with pytest.raises(LeaseNotFound):
        await store.put(b"/late", b"", lease=lease)
    await store.put(b"/3499", b"mine now")
    await revoked
    assert [kv.key for kv in store.range(b"/", b"0").kvs] == [b"/3499"]
    assert store.revision == before + 4 + 1
    await store.close()


@on_virtual_time
async def test_history_is_kept_for_its_time():
    store = EmbeddedStore(None, history_seconds=600)
    await store.start()
    for i in range(100):
        await store.put(b"/a", b"%d" % i)
        await asyncio.sleep(15)
    assert 600 / 15 <= store.revision - store.compacted <= 600 / 15 + 2
    assert store.get(b"/a", store.compacted).value == b"%d" % (store.compacted - 2)
    await store.close()


async def test_history_by_time_goes_on_over_a_restart(tmp_path):
    store = EmbeddedStore(tmp_path)
    await store.start()
    await store.put(b"/a", b"1")
    await store._upkeep._mark()
    await store.put(b"/a", b"2")
    await store.close()
    store = EmbeddedStore(tmp_path, history_seconds=0)
    await store.start()
    assert store.compacted == 0 and store.get(b"/a", 2).value == b"1"
    store._upkeep._forget_old()
    assert store.compacted == 2
    await store.close()


async def test_a_large_lease_on_a_full_disk_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "LEASE_KEYS_PER_REVISION_MAX", 10)
    store = EmbeddedStore(tmp_path)
    await store.start()
    lease = await store.lease_grant(1000)
    await asyncio.gather(*[store.put(b"/%04d" % i, b"", lease=lease) for i in range(35)])
    for after in (3, 4):  # at the third slice, at the last
        store._log.journal.fail("write", after, errno.ENOSPC)
        with pytest.raises(NoSpace):
            await store.lease_revoke(lease)
        assert store.lease_keep_alive(lease) == 1000
        await asyncio.gather(*[store.put(b"/%04d" % i, b"", lease=lease) for i in range(35)])
    await store.lease_revoke(lease)
    assert store.count(b"/", b"0") == 0
    await store.close()


async def test_close_in_the_middle_of_everything(tmp_path, monkeypatch):
    from fastkube.store import snapshot

    monkeypatch.setattr(snapshot, "SLICE_BYTES", 100)
    monkeypatch.setattr(embedded, "LEASE_KEYS_PER_REVISION_MAX", 10)
    store = EmbeddedStore(tmp_path)
    await store.start()
    lease = await store.lease_grant(1000)
    await asyncio.gather(*[store.put(b"/%04d" % i, bytes(100), lease=lease) for i in range(1000)])
    await store.compact(store.revision)
    writing = asyncio.create_task(store.snapshot())
    revoking = asyncio.ensure_future(store.lease_revoke(lease))
    watch = store.watch(b"/", b"0")
    waiting = asyncio.create_task(store.watch(b"/never").next())
    pending = store.put(b"/last", b"")
    await asyncio.sleep(0.005)
    writing.cancel()
    await store.close()
    assert (await pending).key == b"/last"
    for ended in (waiting, revoking, asyncio.ensure_future(store.put(b"/a", b""))):
        with pytest.raises(Unavailable):
            await ended
    while True:
        try:
            await watch.next()
        except Unavailable:
            break
    with pytest.raises(asyncio.CancelledError):
        await writing
    await store.snapshot()  # refuses, and does not hang
    assert not list(tmp_path.glob("*.tmp"))
    await store.close()
    store = EmbeddedStore(tmp_path)
    await store.start()
    assert store.get(b"/last") is not None
    await store.close()


async def test_a_closed_watch_lets_its_reader_go():
    store = EmbeddedStore(None)
    await store.start()
    watch = store.watch(b"/a")
    waiting = asyncio.create_task(watch.next())
    await asyncio.sleep(0)
    watch.close()
    with pytest.raises(WatchCancelled):
        await waiting
    await store.close()


async def test_bounds_of_a_write(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "VALUE_BYTES_MAX", 1000)
    monkeypatch.setattr(embedded, "TXN_BYTES_MAX", 1500)
    monkeypatch.setattr(embedded, "PENDING_BYTES_MAX", 5000)
    store = EmbeddedStore(tmp_path)
    await store.start()
    with pytest.raises(TooLarge):
        await store.put(b"/a", bytes(1001))
    with pytest.raises(TooLarge):
        await store.txn([], [embedded.Put(b"/a", bytes(800)), embedded.Put(b"/b", bytes(800))])
    writes = [store.put(b"/a/%d" % i, bytes(900)) for i in range(10)]
    done = await asyncio.gather(*writes, return_exceptions=True)
    assert 5 <= sum(isinstance(answer, embedded.KeyValue) for answer in done) < 10
    assert all(isinstance(answer, embedded.KeyValue | Overloaded) for answer in done)
    await store.put(b"/a/again", bytes(900))
    await store.close()
    with pytest.raises(TypeError):
        store._tree.put(None, b"", 99)


async def test_unsafe_no_fsync_never_syncs(tmp_path):
    store = EmbeddedStore(tmp_path, fsync=False)
    await store.start()
    store._log.journal.fail("fdatasync", 1, errno.EIO)
    await store.put(b"/a", b"1")
    await store.close()
    assert len(segments.numbered(tmp_path, "wal")) == 1
    tree = embedded.Tree()
    recovery.recover(tmp_path, tree)
    assert tree.get(b"/a").value == b"1"


async def test_damage_is_told_by_file_and_offset_and_leaves_the_directory_free(tmp_path):
    store = EmbeddedStore(tmp_path)
    await store.start()
    for _ in range(3):
        await store.put(b"/a", b"value")
    await store.close()
    path = segments.segment_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(embedded.StoreError, match=f"{path} is damaged at offset 32: the frame does not match its checksum"):
            await EmbeddedStore(tmp_path).start()
