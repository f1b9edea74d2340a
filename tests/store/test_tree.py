"""The tree kernel against its plain-Python model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastkube._ext.tree import Tree
from fastkube._ext.watch import Hub, Subscription
from tests.store.model import Model, Version, within

# Few keys, so that they meet; enough, so that blocks of 128 split and merge.
KEYS = st.one_of(
    st.integers(0, 9).map(lambda i: b"/a/%d" % i),
    st.integers(0, 2000).map(lambda i: b"/b/%04d" % i),
    st.sampled_from([b"", b"/", b"/a", b"/a/", b"/a0", b"/a/1/x", b"\xff", b"/b/0001\0"]),
)
ENDS = st.one_of(KEYS, st.just(b""), st.just(b"\0"), st.just(b"/a0"), st.just(b"/b0"))


class CompactedError(Exception):
    pass


class FutureError(Exception):
    pass


def same(kv, version: Version | None) -> bool:
    if kv is None or version is None:
        return kv is None and version is None
    return Version(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) == version


class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree(CompactedError, FutureError)
        self.model = Model()

    def _revision(self, new: bool) -> int:
        """The next one, or one more operation of an unpublished transaction."""
        return self.model.head + 1 if new or self.model.head == self.model.visible else self.model.head

    @rule(key=KEYS, value=st.binary(max_size=20), new=st.booleans(), lease=st.integers(0, 2))
    def put(self, key, value, new, lease):
        revision = self._revision(new)
        if any(version.key == key and version.mod == revision for version, _ in self.model.events[-30:]):
            return  # a transaction writes a key once
        event = self.tree.put(key, value, revision, -1, lease)
        prev = self.model.newest(key)
        assert same(event.kv, self.model.put(key, value, revision, -1, lease)) and same(event.prev, prev) and not event.deleted

    @rule(key=KEYS, off=st.integers(-1, 1))
    def put_expecting(self, key, off):
        prev = self.model.newest(key)
        expect = max((prev.mod if prev else 0) + off, 0)
        event = self.tree.put(key, b"e", self.model.head + 1, expect)
        expected = self.model.put(key, b"e", self.model.head + 1, expect)
        assert same(event and event.kv, expected)

    @rule(first=st.integers(0, 2000), n=st.integers(1, 400), step=st.sampled_from([1, -1, 7]))
    def put_many(self, first, n, step):
        for i in range(n):
            key, revision = b"/b/%04d" % ((first + i * step) % 2001), self.model.head + 1
            self.tree.put(key, b"m", revision)
            self.model.put(key, b"m", revision)

    @rule(key=KEYS)
    def delete(self, key):
        revision = self.model.head + 1
        event = self.tree.delete(key, revision)
        deleted = self.model.delete(key, revision)
        assert (event is None) == (deleted is None)
        if event is not None:
            assert event.deleted and event.kv.value == b"" and event.kv.mod_revision == revision and same(event.prev, deleted)

    @rule(first=st.integers(0, 2000), n=st.integers(1, 600))
    def delete_many(self, first, n):
        for i in range(first, first + n):
            revision = self.model.head + 1
            self.tree.delete(b"/b/%04d" % i, revision)
            self.model.delete(b"/b/%04d" % i, revision)

    @rule(data=st.data())
    def publish(self, data):
        revision = data.draw(st.integers(self.model.visible, self.model.head))
        self.tree.publish(revision)
        self.model.publish(revision)

    @rule()
    def publish_all(self):
        self.tree.publish(self.model.head)
        self.model.publish(self.model.head)

    @rule()
    def rollback(self):
        self.tree.rollback()
        self.model.rollback()
        assert self.tree.head == self.model.head

    @rule(data=st.data(), limit=st.integers(100, 3000))
    def compact(self, data, limit):
        revision = data.draw(st.integers(0, self.model.visible))
        self.tree.compact(revision)
        self.model.compact(revision)
        while not self.tree.prune(self.model.compacted, limit):
            self.check_range(b"/", b"0", self.model.visible)

    @rule(key=KEYS, end=ENDS, limit=st.sampled_from([0, 1, 5, 200]), data=st.data())
    def range(self, key, end, limit, data):
        revision = data.draw(st.integers(max(self.model.compacted, 1), self.model.visible))
        self.check_range(key, end, revision, limit)
        self.check_range(key, end, self.model.visible, limit)

    def check_range(self, key, end, revision, limit=0):
        expected = self.model.range(key, end, revision)
        kvs, count, at = self.tree.range(key, end, revision, limit)
        assert count == len(expected) and at == revision
        cut = expected[:limit] if limit else expected
        assert len(kvs) == len(cut) and all(same(kv, version) for kv, version in zip(kvs, cut, strict=True))
        assert self.tree.range(key, end, revision, 0, True) == ([], len(expected), revision)

    @rule(key=KEYS, data=st.data())
    def get(self, key, data):
        revision = data.draw(st.integers(max(self.model.compacted, 1), self.model.visible))
        assert same(self.tree.get(key, revision), self.model.at(key, revision))
        assert same(self.tree.get(key), self.model.at(key, self.model.visible))
        assert same(self.tree.newest(key), self.model.newest(key))

    @rule(key=KEYS, end=ENDS)
    def range_at_the_head(self, key, end):
        kvs, count, _ = self.tree.range(key, end, 0, 0, False, True)
        expected = self.model.range(key, end, self.model.head)
        assert count == len(expected) and all(same(kv, version) for kv, version in zip(kvs, expected, strict=True))

    @rule(key=KEYS, end=ENDS, data=st.data(), limit=st.integers(1, 50))
    def watch_from_history(self, key, end, data, limit):
        start = data.draw(st.integers(max(self.model.compacted, 1), self.model.visible + 1))
        subscription = Subscription(key, end, start, None)
        subscription.position = self.tree.position(start)
        seen = []
        while subscription.position < self.tree.visible_at:
            batch = Hub(None).history(self.tree, subscription, limit)
            if seen and batch:
                assert batch[0].kv.mod_revision > seen[-1].kv.mod_revision  # a revision is never cut
            seen += batch
        assert [(e.kv.key, e.kv.mod_revision, e.deleted) for e in seen] == [(v.key, v.mod, not v.version) for v in self.model.history(key, end, start)]

    @precondition(lambda self: self.model.compacted > 0)
    @rule()
    def outside_of_history(self):
        if self.model.compacted > 1:
            with pytest.raises(CompactedError):
                self.tree.get(b"/a", self.model.compacted - 1)
        with pytest.raises(FutureError):
            self.tree.range(b"/a", b"", self.model.visible + 1)

    @rule(data=st.data(), size=st.sampled_from([1, 300, 1 << 20]))
    def dump_and_load(self, data, size):
        revision = data.draw(st.integers(max(self.model.compacted, 1), self.model.visible))
        other = Tree(CompactedError, FutureError)
        other.restore(revision)
        after, total = None, 0
        while True:
            payload, after, n = self.tree.dump(after, revision, size)
            assert other.load(payload, revision) == n
            total += n
            if after is None:
                break
        expected = self.model.range(b"", b"\0", revision)
        assert total == len(expected) == len(other)
        kvs, count, _ = other.range(b"", b"\0")
        assert count == total and all(same(kv, version) for kv, version in zip(kvs, expected, strict=True))

    @invariant()
    def bytes_add_up(self):
        def size(version):
            return len(version.key) + len(version.value) + 256

        assert self.tree.head == self.model.head and self.tree.visible == self.model.visible
        live = [self.model.newest(key) for key in self.model.versions]
        assert self.tree.live_bytes == sum(size(version) for version in live if version)

    def teardown(self):
        """With everything compacted only what is live is left."""
        self.publish_all()
        self.tree.compact(self.model.visible)
        assert self.tree.prune(self.model.visible, 1 << 30)
        assert len(self.tree) == len(self.model.range(b"", b"\0", self.model.visible))
        at_last = sum(1 for version, _ in self.model.events if version.mod == self.model.visible)
        assert self.tree.history_bytes == at_last * 64 and self.tree.log_end - self.tree.log_start == at_last
        self.check_range(b"", b"\0", self.model.visible)


TreeMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
test_tree_is_its_model = TreeMachine.TestCase


@given(st.lists(st.tuples(KEYS, ENDS), max_size=20), st.lists(KEYS, max_size=40), st.lists(st.integers(0, 19), max_size=10))
@settings(max_examples=200, deadline=None)
def test_fan_out_is_a_filter(ranges, keys, closed):
    """Each watcher gets the events in its range, in order, in one batch; closed ones get nothing."""
    tree, hub = Tree(), Hub(lambda s: pytest.fail("raised"))
    ranges += [(b"/a/", b"/a0"), (b"/", b"0"), (b"/b/", b"/b0")]
    got: list[list] = [[] for _ in ranges]
    subscriptions = [Subscription(key, end, 2 + i % 5, got[i].append) for i, (key, end) in enumerate(ranges)]
    for s in subscriptions:
        hub.add(s)
    closed = {i for i in closed if i < len(ranges)}
    for i in closed:
        hub.remove(subscriptions[i])
    for key in keys:
        tree.put(key, b"", tree.head + 1)
    tree.publish(tree.head)
    hub.feed(tree, 0, tree.visible_at)
    for i, (key, end) in enumerate(ranges):
        expected = [(k, r) for r, k in enumerate(keys, 2) if r >= 2 + i % 5 and within(k, key, end)]
        assert [[(e.kv.key, e.kv.mod_revision) for e in batch] for batch in got[i]] == ([expected] if expected and i not in closed else [])
    for i, s in enumerate(subscriptions):
        if i not in closed:
            hub.remove(s)
    assert hub.count == 0


def test_a_long_chain_of_versions_goes_without_recursion():
    tree = Tree()
    for _ in range(300_000):
        tree.put(b"/a", b"", tree.head + 1)
    kept = tree.newest(b"/a")
    del tree
    assert kept.version == 300_000


def test_attrs_of_old_events_are_dropped():
    tree = Tree()
    first = tree.put(b"/a", b"", 2)
    first.attrs = "frame"
    tree.publish(2)
    for i in range(5000):
        tree.put(b"/b/%d" % i, b"", tree.head + 1)
    tree.publish(tree.head)
    assert first.attrs is None


@given(st.binary(max_size=50), st.integers(0, 60), st.integers(2, 1 << 62))
def test_splice(value, at, revision):
    tree = Tree()
    tree.restore(revision - 1)
    if at > len(value):
        with pytest.raises(ValueError):
            tree.put(b"/a", value, revision, -1, 0, at)
        assert tree.head == revision - 1 and len(tree) == 0
    else:
        assert tree.put(b"/a", value, revision, -1, 0, at).kv.value == value[:at] + b"%d" % revision + value[at:]
