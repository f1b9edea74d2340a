"""The store through its interface, in process, fsync on. Floors: issue 3 of the project ("How fast")."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
import uvloop

from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import Compare, Put

VALUE = b'{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":""}}'.ljust(1024, b" ")
KEYS = 10_000
WRITERS = 64


@pytest.fixture
def loop():
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def store(loop, tmp_path):
    s = EmbeddedStore(tmp_path)
    loop.run_until_complete(s.start())

    async def fill():
        await asyncio.gather(*[s.put(b"/registry/pods/default/web-%06d" % i, VALUE) for i in range(KEYS)])

    loop.run_until_complete(fill())
    yield s
    loop.run_until_complete(s.close())


def writers(loop, write):
    """A function that runs 64 writers of 200 writes each."""

    async def writer(w):
        for i in range(200):
            await write(w, i)

    async def all_writers():
        await asyncio.gather(*[writer(w) for w in range(WRITERS)])

    return (lambda: loop.run_until_complete(all_writers())), 200 * WRITERS


def test_put_1KiB_durable_64_writers(cpu, loop, store):
    work, n = writers(loop, lambda w, i: store.put(b"/registry/pods/default/web-%06d" % (w * 150 + i % 150), VALUE, revision_at=64))
    cpu(work, n, 12)


def test_create_1KiB_durable_64_writers(cpu, loop, store):
    serial = count()
    work, n = writers(loop, lambda w, i: store.put(b"/registry/events/default/%012x" % (next(serial) * 0x9E3779B97F4A % (1 << 47)), VALUE, expect=0))
    cpu(work, n, 12)


def test_txn_compare_and_put_64_writers(cpu, loop, store):
    def write(w, i):
        key = b"/registry/pods/default/web-%06d" % (w * 150 + i % 150)
        return store.txn([Compare(key, "mod", "=", store.get(key).mod_revision)], [Put(key, VALUE)])

    work, n = writers(loop, write)
    cpu(work, n, 16)


def test_put_one_writer(cpu, loop, store):
    async def work():
        for i in range(500):
            await store.put(b"/registry/pods/default/web-%06d" % i, VALUE)

    cpu(lambda: loop.run_until_complete(work()), 500, 150)


def test_get(cpu, store):
    keys = [b"/registry/pods/default/web-%06d" % (i * 7919 % KEYS) for i in range(KEYS)]

    def work():
        get = store.get
        for key in keys:
            get(key)

    cpu(work, KEYS, 1)


def test_range_500(cpu, store):
    def work():
        for i in range(0, KEYS - 500, 50):
            store.range(b"/registry/pods/default/web-%06d" % i, b"/registry/pods/default0", limit=500)

    cpu(work, (KEYS - 500) // 50, 60)


def test_range_500_at_an_old_revision(cpu, loop, store):
    async def churn():
        await asyncio.gather(*[store.put(b"/registry/pods/default/web-%06d" % i, VALUE) for i in range(0, KEYS, 2)])

    revision = store.revision
    loop.run_until_complete(churn())

    def work():
        for i in range(0, KEYS - 500, 50):
            store.range(b"/registry/pods/default/web-%06d" % i, b"/registry/pods/default0", revision, 500)

    cpu(work, (KEYS - 500) // 50, 120)


def test_one_commit_to_1000_watchers_10_match(cpu, loop, store):
    """What the watchers cost, beside the put itself: the puts without any are measured above."""
    seen = []
    for i in range(990):
        store.watch(b"/registry/pods/ns-%d/" % i, b"/registry/pods/ns-%d0" % i, on_events=seen.append)
    for _ in range(10):
        store.watch(b"/registry/pods/default/", b"/registry/pods/default0", on_events=seen.append)
    tree, hub = store._tree, store._feed._hub

    async def churn():
        await asyncio.gather(*[store.put(b"/registry/pods/default/web-%06d" % i, VALUE) for i in range(1000)])

    loop.run_until_complete(churn())

    def work():
        for at in range(tree.visible_at - 1000, tree.visible_at):
            hub.feed(tree, at, at + 1)
        seen.clear()

    cpu(work, 1000, 15)


def test_count_10000(cpu, store):
    def work():
        for _ in range(1000):
            store.count(b"/registry/pods/", b"/registry/pods0")

    cpu(work, 1000, 5)
