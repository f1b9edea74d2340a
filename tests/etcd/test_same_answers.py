"""The same random histories into a real etcd and into ours, over gRPC: every answer, error and event must be the same.

FASTKUBE_ETCD_OPERATIONS (default 3000) says how many operations, FASTKUBE_ETCD_SEED where to begin. What differs by nature is made comparable: the ids
of cluster and member, the raft term, remaining times to live, order among equals of a sort, how events are cut into answers.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time

import grpc
import pytest

from fastkube.store.etcd import messages as m

OPERATIONS = int(os.environ.get("FASTKUBE_ETCD_OPERATIONS", "3000"))
SEED = int(os.environ.get("FASTKUBE_ETCD_SEED", "1"))
HISTORY_OPERATIONS = 500  # of one history
KEYS = [b"a", b"b", b"ba", b"bb", b"c", b"c\0", b"c\0\0", b"d/1", b"d/2", b"d/3", b"d0", b"\xff", b"\xff\xff"]
ENDS = [b"", b"", b"b", b"c", b"d0", b"e", b"\0", b"\xff"]
VALUES = [b"", b"1", b"2", b"long" * 50]
LEASES = [1, 2, 3, 77]


class Generator:
    """Requests that are mostly good. `revision` is where the stores are."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.revision = 1
        self.compacted = 0

    def key(self) -> bytes:
        return self.r.choice(KEYS) if self.r.random() > 0.01 else b""

    def a_revision(self) -> int:
        if self.r.random() < 0.6:
            return 0
        return max(0, self.r.randint(max(self.compacted - 2, 0), self.revision + 2))

    def range(self):
        r = self.r
        fields = {"key": self.key(), "range_end": r.choice(ENDS), "revision": self.a_revision()}
        if r.random() < 0.3:
            fields["limit"] = r.randint(0, 6)
        if r.random() < 0.3:
            fields |= {"sort_order": r.randint(0, 2), "sort_target": r.randint(0, 4)}
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if r.random() < 0.06:
                fields[name] = r.randint(1, self.revision + 1)
        for name, p in (("serializable", 0.2), ("keys_only", 0.1), ("count_only", 0.1)):
            fields[name] = r.random() < p
        return m.RangeRequest(**fields)

    def put(self):
        r = self.r
        put = m.PutRequest(key=self.key(), value=r.choice(VALUES), prev_kv=r.random() < 0.3)
        if r.random() < 0.25:
            put.lease = r.choice(LEASES)
        if r.random() < 0.08:
            put.ignore_value = True
            put.value = b"" if r.random() < 0.9 else b"x"
        if r.random() < 0.08:
            put.ignore_lease = True
            put.lease = 0 if r.random() < 0.9 else 1
        return put

    def delete(self, *, txn: bool = False):
        r = self.r
        ends = [end for end in ENDS if end != b"\0"] if txn else ENDS  # (etcd takes a delete of [key, "\0") in a transaction for an empty one, in checks only)
        key = self.key()
        end = r.choice(ends) if r.random() < 0.3 else b""
        return m.DeleteRangeRequest(key=key, range_end=end, prev_kv=r.random() < 0.5)

    def compare(self):
        r = self.r
        c = m.Compare(result=r.randint(0, 3), target=r.randint(0, 4), key=self.key(), range_end=r.choice(ENDS) if r.random() < 0.2 else b"")
        if r.random() < 0.98:
            name = ("version", "create_revision", "mod_revision", "value", "lease")[c.target]
            setattr(c, name, r.choice(VALUES) if name == "value" else r.choice([0, 1, 2, 3, self.revision, max(self.revision - r.randint(0, 20), 0)]))
        return c

    def operation(self, depth: int):
        x = self.r.random()
        if x < 0.35:
            return m.RequestOp(request_range=self.range())
        if x < 0.7:
            return m.RequestOp(request_put=self.put())
        if x < 0.85:
            return m.RequestOp(request_delete_range=self.delete(txn=True))
        if x < 0.99 and depth < 3:
            return m.RequestOp(request_txn=self.txn(depth + 1))
        return m.RequestOp() if x > 0.995 else m.RequestOp(request_range=self.range())

    def txn(self, depth: int = 0):
        r = self.r
        return m.TxnRequest(
            compare=[self.compare() for _ in range(r.choice([0, 1, 1, 2]))],
            success=[self.operation(depth) for _ in range(r.choice([0, 1, 1, 2, 3]))],
            failure=[self.operation(depth) for _ in range(r.choice([0, 0, 1, 2]))],
        )

    def next(self) -> tuple[str, object]:
        x = self.r.random()
        r = self.r
        if x < 0.25:
            return "Range", self.range()
        if x < 0.5:
            return "Put", self.put()
        if x < 0.6:
            return "DeleteRange", self.delete()
        if x < 0.85:
            return "Txn", self.txn()
        if x < 0.88:
            return "Compact", m.CompactionRequest(
                revision=r.choice([self.revision - r.randint(0, 30), self.revision + 1, self.compacted, -1]) or 1, physical=r.random() < 0.5
            )
        if x < 0.92:
            return "LeaseGrant", m.LeaseGrantRequest(ID=r.choice(LEASES), TTL=r.choice([60, 100, 1000, 9_000_000_001]))
        if x < 0.94:
            return "LeaseRevoke", m.LeaseRevokeRequest(ID=r.choice(LEASES))
        if x < 0.97:
            return "LeaseTimeToLive", m.LeaseTimeToLiveRequest(ID=r.choice(LEASES), keys=r.random() < 0.7)
        return "LeaseLeases", m.LeaseLeasesRequest()


def asked(client, method, request):
    """-> ("ok", answer) or ("error", code, text)."""
    try:
        return "ok", getattr(client, method)(request)
    except grpc.RpcError as e:
        return "error", e.code().name, e.details()


def plain(answer):
    """What is to be the same of an answer."""
    if answer[0] == "error":
        return answer
    message = answer[1]
    header = message.header
    header.cluster_id = header.member_id = header.raft_term = 0
    if isinstance(message, m.LeaseTimeToLiveResponse):
        message.TTL = -1 if message.TTL < 0 else 0
        keys = sorted(message.keys)
        del message.keys[:]
        message.keys.extend(keys)
    if isinstance(message, m.LeaseLeasesResponse):
        ids = sorted(lease.ID for lease in message.leases)
        return "ok", ids
    return "ok", message.SerializeToString(deterministic=True), str(message)


class Watching:
    """One stream that collects what each watcher is told."""

    def __init__(self, client) -> None:
        self._requests: queue.Queue = queue.Queue()
        self._changed = threading.Condition()
        self.events: dict[int, list] = {}
        self.control: dict[int, list] = {}
        self.created = 0
        self.ended: str | None = None
        self._call = client.Watch(iter(self._requests.get, None))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                with self._changed:
                    if answer.events:
                        revisions = [e.kv.mod_revision for e in answer.events]
                        assert revisions == sorted(revisions) and answer.header.revision >= revisions[-1]
                        self.events.setdefault(answer.watch_id, []).extend(e.SerializeToString(deterministic=True) for e in answer.events)
                    else:
                        self.created += answer.created
                        self.control.setdefault(answer.watch_id, []).append((answer.created, answer.canceled, answer.compact_revision, answer.cancel_reason))
                    self._changed.notify_all()
        except grpc.RpcError as e:
            self.ended = e.details()

    def send(self, **fields) -> None:
        self._requests.put(m.WatchRequest(**fields))

    def until(self, good, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: good(self), 30), (
                f"{what}: control {self.control}, { ({k: len(v) for k, v in self.events.items()}) } events, {self.ended}"
            )

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()


def seeds() -> list[int]:
    return list(range(SEED, SEED + max(OPERATIONS // HISTORY_OPERATIONS, 1)))


def empty(client, revision: int) -> None:
    client.DeleteRange(key=b"\0", range_end=b"\0")
    for lease in client.LeaseLeases().leases:
        client.LeaseRevoke(ID=lease.ID)


@pytest.mark.parametrize("seed", seeds())
def test_every_answer_is_etcds(launch, seed: int) -> None:
    print(f"FASTKUBE_ETCD_SEED={seed}")
    both = launch("etcd", f"--max-txn-ops={8}").client(), launch("ours", "--unsafe-no-fsync", "--max-txn-ops=8").client()
    generator = Generator(seed)
    watching = [Watching(client) for client in both]
    watch_ids: dict[int, object] = {}
    marker = b"zz-end-of-history"
    for step in range(HISTORY_OPERATIONS):
        if generator.r.random() < 0.03:
            create = {
                "key": generator.r.choice([*KEYS, b""]), "range_end": generator.r.choice(ENDS), "watch_id": 100 + step,
                "start_revision": generator.r.choice([0, 0, generator.r.randint(generator.compacted + 1, generator.revision + 5), max(generator.compacted - 1, 0)]),
                "prev_kv": generator.r.random() < 0.5, "filters": generator.r.choice([[], [], [0], [1]]), "fragment": generator.r.random() < 0.3,
            }  # fmt: skip
            wanted = len(watch_ids) + 1
            for w in watching:
                w.send(create_request=m.WatchCreateRequest(**create))
                w.until(lambda w, wanted=wanted: w.created == wanted, f"step {step}: creation")
            watch_ids[100 + step] = create, generator.revision, generator.compacted
            # What was in the past when it began must be told before history is compacted under it.
            time.sleep(0.25 if 0 < create["start_revision"] <= generator.revision else 0)
        method, request = generator.next()
        answers = [plain(asked(client, method, request)) for client in both]
        assert answers[1] == answers[0], f"seed {seed}, step {step}: {method} {request}"
        if method == "Compact" and answers[0][0] == "ok":
            generator.compacted = request.revision
        generator.revision = both[0].Range(key=b"a").header.revision
        assert both[1].Range(key=b"a").header.revision == generator.revision
    # A last event for every watcher: after it each has been told everything.
    for client, w in zip(both, watching, strict=True):
        w.send(create_request=m.WatchCreateRequest(key=marker, watch_id=1))
        w.until(lambda w: 1 in w.control, "marker")
        client.Put(key=marker)
        w.until(lambda w: 1 in w.events, "end of history")
    time.sleep(0.3)
    for watch_id in [*watch_ids, -1]:
        assert watching[1].control.get(watch_id) == watching[0].control.get(watch_id), f"seed {seed}, watch {watch_id} {watch_ids.get(watch_id)}"
        assert watching[1].events.get(watch_id) == watching[0].events.get(watch_id), f"seed {seed}, watch {watch_id} {watch_ids.get(watch_id)}"
    for w in watching:
        w.close()
