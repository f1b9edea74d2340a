"""The embedded store's contract (fastkube/store/interface.py), with and without a disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import (
    Compacted,
    Compare,
    CompareFailed,
    Delete,
    DuplicateKey,
    FutureRevision,
    InUse,
    LeaseExists,
    LeaseNotFound,
    NoSpace,
    Put,
    Unavailable,
    WatchCancelled,
)


@pytest.fixture(params=["disk", "memory"])
async def store(request, tmp_path):
    s = EmbeddedStore(tmp_path / "store" if request.param == "disk" else None)
    await s.start()
    yield s
    await s.close()


async def test_first_put_is_revision_two_and_carries_it(store):
    kv = await store.put(b"/a", b'{"rv":""}', revision_at=7, attrs="digest")
    assert (kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.attrs) == (b'{"rv":"2"}', 2, 2, 1, "digest")
    assert store.revision == 2 and store.get(b"/a") is kv
    again = await store.put(b"/a", b"x")
    assert (again.mod_revision, again.create_revision, again.version) == (3, 2, 2)
    assert store.get(b"/a", 2) is kv


async def test_a_write_is_not_visible_before_it_is_durable(store):
    future = store.put(b"/a", b"1")
    assert store.get(b"/a") is None and store.revision == 1 and store.count(b"/", b"0") == 0
    assert store.range(b"/", b"0").kvs == []
    await future
    assert store.get(b"/a").value == b"1" and store.count(b"/", b"0") == 1


async def test_expectations_are_against_the_head(store):
    first = store.put(b"/a", b"1", expect=0)
    second = store.put(b"/a", b"2", expect=0)
    third = store.put(b"/a", b"3", expect=2)
    gone = store.delete(b"/a", expect=3)
    nothing = store.delete(b"/a")
    again = store.put(b"/a", b"4", expect=0)
    assert (await first).mod_revision == 2
    with pytest.raises(CompareFailed) as e:
        await second
    assert e.value.current.value == b"1"
    assert (await third).version == 2
    revision, deleted = await gone
    assert revision == 4 and deleted.value == b"3"
    assert await nothing == (4, None)
    assert ((await again).mod_revision, (await again).version) == (5, 1)
    with pytest.raises(CompareFailed):
        await store.delete(b"/a", expect=3)
    with pytest.raises(CompareFailed) as e:
        await store.put(b"/missing", b"", expect=7)
    assert e.value.current is None


async def test_ranges_limits_and_old_revisions(store):
    for i in range(300):
        await store.put(b"/k/%03d" % i, b"v%d" % i)
    r = store.range(b"/k/", b"/k0", limit=10)
    assert [kv.key for kv in r.kvs] == [b"/k/%03d" % i for i in range(10)] and r.more and r.count == 300 and r.revision == 301
    for i in range(0, 300, 3):
        await store.delete(b"/k/%03d" % i)
    assert store.count(b"/k/", b"/k0") == 200
    assert store.count(b"/k/", b"/k0", 301) == 300
    assert store.range(b"/k/", b"/k0", 301, 5).count == 300
    assert len(store.range(b"/k/", b"/k0", 302).kvs) == 299
    assert store.range(b"/k/100", b"").kvs[0].value == b"v100"
    assert store.range(b"/k/290", b"\0").count == 7
    assert store.range(b"/x", b"/y").count == 0 and store.range(b"/z", b"/a").kvs == []
    with pytest.raises(FutureRevision):
        store.get(b"/k/001", store.revision + 1)


async def test_transactions(store):
    await store.put(b"/a", b"1")
    result = await store.txn(
        [Compare(b"/a", "value", "=", b"1"), Compare(b"/b", "version", "=", 0), Compare(b"/a", "mod", "<", 3)],
        [Put(b"/b", b"rev=", revision_at=4), Put(b"/c", b""), Delete(b"/a")],
    )
    assert result.succeeded and result.revision == 3
    assert result.results[0].value == b"rev=3" and [kv.key for kv in result.results[2]] == [b"/a"]
    other = await store.txn([Compare(b"/zzz", "value", "!=", b"1")], [Put(b"/d", b"")], [])
    assert not other.succeeded and other.revision == 3  # a missing key has no value to compare
    assert (await store.txn([], [Delete(b"/", b"\0")])).results[0][0].key == b"/b"
    assert store.count(b"/", b"\0") == 0
    for operations in ([Put(b"/a", b""), Put(b"/a", b"")], [Put(b"/a", b""), Delete(b"/", b"0")]):
        with pytest.raises(DuplicateKey):
            await store.txn([], operations)
    with pytest.raises(LeaseNotFound):
        await store.txn([], [Put(b"/a", b""), Put(b"/b", b"", lease=9)])
    assert store.revision == 4 and store.count(b"/", b"\0") == 0


async def test_watch_gets_each_event_once_in_order_whole_revisions(store):
    await store.put(b"/r/a", b"1")
    await store.put(b"/r/a", b"2")
    batches: list = []
    live: list = []
    store.watch(b"/r/", b"/r0", start=2, on_events=batches.append)
    store.watch(b"/r/", b"/r0", on_events=live.append)
    single = store.watch(b"/r/b")
    odd: list = []
    store.watch(b"/r/b", b"/r/d", on_events=odd.extend)
    assert batches == []  # never inside the call
    await store.txn([], [Put(b"/r/b", b"3"), Put(b"/r/c", b"4"), Put(b"/other", b"")])
    await store.delete(b"/r/a")
    events = [e for batch in batches for e in batch]
    assert [(e.deleted, e.kv.key, e.kv.mod_revision) for e in events] == [
        (False, b"/r/a", 2),
        (False, b"/r/a", 3),
        (False, b"/r/b", 4),
        (False, b"/r/c", 4),
        (True, b"/r/a", 5),
    ]
    assert events[1].prev.value == b"1" and events[4].prev.value == b"2" and events[0].prev is None
    assert [e for batch in live for e in batch] == events[2:]
    assert [e.kv.key for e in odd] == [b"/r/b", b"/r/c"]
    assert list(await single.next()) == [events[2]]


async def test_a_watch_from_the_future_starts_there(store):
    seen: list = []
    store.watch(b"/a", start=4, on_events=seen.extend)
    for _ in range(4):
        await store.put(b"/a", b"")
    assert [e.kv.mod_revision for e in seen] == [4, 5]


async def test_long_history_is_fed_in_slices_without_a_gap(store):
    writes = [store.put(b"/h/%d" % (i % 10), b"") for i in range(9000)]
    await asyncio.gather(*writes)
    seen: list = []
    store.watch(b"/h/", b"/h0", start=2, on_events=seen.extend)
    while len(seen) < 9100:
        await store.put(b"/h/x", b"")
        await asyncio.sleep(0)
        if store.revision > 10_000:
            break
    revisions = [e.kv.mod_revision for e in seen]
    assert revisions == list(range(2, 2 + len(revisions))) and len(revisions) >= 9100


async def test_watchers_may_write_watch_and_close_inside_their_callback(store):
    seen: list = []
    late: list = []

    def on_events(events):
        seen.extend(events)
        if len(seen) == 1:
            other.close()
            store.watch(b"/a", on_events=late.extend)
            written.append(store.put(b"/a", b"again"))

    written: list = []
    store.watch(b"/a", on_events=on_events)
    never: list = []
    other = store.watch(b"/a", on_events=never.extend)
    await store.put(b"/a", b"1")
    await written[0]
    assert [e.kv.value for e in seen] == [b"1", b"again"] and [e.kv.value for e in late] == [b"again"] and never == []


async def test_a_callback_that_raises_ends_only_its_own_watch(store):
    ends: list = []
    seen: list = []
    store.watch(b"/a", on_events=lambda events: 1 / 0, on_end=ends.append)
    store.watch(b"/a", on_events=seen.extend)
    await store.put(b"/a", b"1")
    await store.put(b"/a", b"2")
    assert len(seen) == 2 and len(ends) == 1 and isinstance(ends[0], WatchCancelled)


async def test_a_slow_reader_is_cut_off(store):
    slow = store.watch(b"/a/", b"/a0")
    for _ in range(3):
        await asyncio.gather(*[store.put(b"/a/%d" % i, b"") for i in range(5000)])
    with pytest.raises(WatchCancelled):
        await slow.next()


async def test_compaction_keeps_the_compacted_revision_readable(store):
    for i in range(2, 8):
        await store.put(b"/a", b"%d" % i)
    await store.delete(b"/a")  # 8
    await store.put(b"/b", b"")  # 9
    await store.compact(5)
    assert store.get(b"/a", 5).value == b"5" and store.get(b"/a", 6).value == b"6"
    for revision in (4, 1):
        with pytest.raises(Compacted) as e:
            store.range(b"/", b"0", revision)
        assert e.value.compacted == 5
    for revision in (5, 3):
        with pytest.raises(Compacted):
            await store.compact(revision)
    with pytest.raises(FutureRevision):
        await store.compact(10)
    seen: list = []
    ends: list = []
    store.watch(b"/a", start=5, on_events=seen.extend)
    store.watch(b"/a", start=4, on_events=seen.extend, on_end=ends.append)
    with pytest.raises(Compacted):
        await store.watch(b"/a", start=2).next()
    await asyncio.sleep(0)
    assert [e.kv.mod_revision for e in seen] == [5, 6, 7, 8] and isinstance(ends[0], Compacted)
    await store.compact(9)
    await asyncio.sleep(0.01)
    assert len(store._tree) == 1  # the deleted key left nothing behind


async def test_leases(store):
    lease = await store.lease_grant(100)
    with pytest.raises(LeaseExists):
        await store.lease_grant(5, lease)
    await store.put(b"/a", b"", lease=lease)
    await store.put(b"/b", b"", lease=lease)
    await store.put(b"/c", b"", lease=lease)
    await store.put(b"/b", b"")  # takes it off the lease
    assert store.lease_keep_alive(lease) == 100
    with pytest.raises(LeaseNotFound):
        await store.put(b"/d", b"", lease=lease + 1)
    before = store.revision
    await store.lease_revoke(lease)
    assert [kv.key for kv in store.range(b"/", b"0").kvs] == [b"/b"] and store.revision == before + 1
    with pytest.raises(LeaseNotFound):
        await store.lease_revoke(lease)
    with pytest.raises(LeaseNotFound):
        store.lease_keep_alive(lease)


async def test_quota(tmp_path):
    store = EmbeddedStore(None, quota_bytes=100_000)
    await store.start()
    with pytest.raises(NoSpace):
        for _ in range(200):
            await store.put(b"/a", bytes(1000))
    assert store.get(b"/a") is not None
    await store.compact(store.revision)
    await asyncio.sleep(0.01)
    await store.put(b"/a", bytes(1000))
    await store.close()


async def test_history_is_bounded_by_bytes():
    store = EmbeddedStore(None, history_bytes=1 << 20)
    await store.start()
    for _ in range(20):
        await asyncio.gather(*[store.put(b"/a/%d" % i, bytes(1000)) for i in range(500)])
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert store._tree.history_bytes <= 1 << 20 and store.compacted > 1000
    assert store.count(b"/", b"0") == 500
    await store.close()


async def test_everything_is_there_after_a_restart(tmp_path: Path):
    store = EmbeddedStore(tmp_path)
    await store.start()
    lease = await store.lease_grant(50)
    await asyncio.gather(*[store.put(b"/a/%d" % (i % 100), b"%d" % i) for i in range(500)])
    await store.put(b"/l", b"", lease=lease)
    await store.txn([], [Delete(b"/a/0"), Put(b"/z", b"z")])
    await store.compact(300)
    await store.snapshot()
    await store.delete(b"/a/1")
    everything = [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in store.range(b"/", b"0").kvs]
    then = [kv.value for kv in store.range(b"/", b"0", 400).kvs]
    seen: list = []
    store.watch(b"/", b"0", start=300, on_events=seen.extend)
    await asyncio.sleep(0.01)
    revision = store.revision
    await store.close()
    with pytest.raises(Unavailable):
        await store.put(b"/a", b"")

    store = EmbeddedStore(tmp_path)
    await store.start()
    assert store.revision == revision and store.compacted == 300
    assert [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in store.range(b"/", b"0").kvs] == everything
    assert [kv.value for kv in store.range(b"/", b"0", 400).kvs] == then
    again: list = []
    store.watch(b"/", b"0", start=300, on_events=again.extend)
    await asyncio.sleep(0.01)
    assert [(e.deleted, e.kv.key, e.kv.mod_revision) for e in again] == [(e.deleted, e.kv.key, e.kv.mod_revision) for e in seen]
    assert store.lease_keep_alive(lease) == 50
    await store.lease_revoke(lease)
    assert store.get(b"/l") is None
    await store.close()


async def test_one_process_per_directory(tmp_path: Path):
    store = EmbeddedStore(tmp_path)
    await store.start()
    with pytest.raises(InUse, match="in use by another process"):
        await EmbeddedStore(tmp_path).start()
    await store.close()
    again = EmbeddedStore(tmp_path)
    await again.start()
    await again.close()
