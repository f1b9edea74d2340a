"""KV: ranges, puts, deletes, transactions, compaction.

Ranges answer from memory; a transaction is checked whole (etcd's v3rpc/key.go), translated into the store's operations, and its results are encoded
along the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from fastkube._ext import etcd as wire
from fastkube._ext.tree import KeyValue
from fastkube.store import interface
from fastkube.store.etcd import errors
from fastkube.store.etcd.auth import READ, WRITE, Auth, Caller
from fastkube.store.etcd.member import Member
from fastkube.store.interface import Delete, Put, Range, RangeResult, Txn, TxnResult

KEY_OVERHEAD_BYTES = 256  # what a put is taken to cost beside its key and value (etcd's quota)
RAFT_OVERHEAD_BYTES = 16  # of the envelope that etcd counts into a request's size
PRUNE_POLL_SECONDS = 0.005

_OPS = ("=", ">", "<", "!=")
_TARGETS = (("version", "version"), ("create", "create_revision"), ("mod", "mod_revision"), ("value", "value"), ("lease", "lease"))
_SORT_KEYS = (
    lambda kv: kv.key,
    lambda kv: kv.version,
    lambda kv: kv.create_revision,
    lambda kv: kv.mod_revision,
    lambda kv: kv.value,
)


class KV:
    def __init__(self, member: Member, auth: Auth) -> None:
        self._member = member
        self._store = member.store
        self._header = member.header
        self._auth = auth
        self._request_bytes_max = member.options.request_bytes_max - RAFT_OVERHEAD_BYTES

    async def Range(self, r: Any, caller: Caller) -> bytes:
        _check_range(r)
        if self._auth.enabled:
            self._auth.check(caller, r.key, r.range_end, READ)
        result = self._store.range(r.key, r.range_end, r.revision, _fetched(r)) if not r.count_only else None
        count = self._store.count(r.key, r.range_end, r.revision) if result is None else result.count
        return _range_response(self._header.encode(self._store.revision), r, [] if result is None else result.kvs, count)

    async def Put(self, r: Any, caller: Caller) -> bytes:
        await self._member.check_space(_put_cost(r))
        _check_put(r)
        self._check_size(r)
        if self._auth.enabled:
            self._check_permissions_put(r, caller)
        if not (r.prev_kv or r.ignore_value or r.ignore_lease):
            kv = await self._store.put(r.key, r.value, lease=r.lease)
            return self._header.encode(kv.mod_revision)
        if r.lease:
            self._store.lease_status(r.lease)  # a put alone misses the lease before the key, one in a transaction after it
        result = await self._store.txn((), _put_ops(r))
        return _put_response(self._header.encode(result.revision), r, iter(result.results))

    async def DeleteRange(self, r: Any, caller: Caller) -> bytes:
        _check_delete(r)
        self._check_size(r)
        if self._auth.enabled:
            self._check_permissions_delete(r, caller)
        result = await self._store.txn((), (Delete(r.key, r.range_end),))
        return _delete_response(self._header.encode(result.revision), r, result.results[0])

    async def Txn(self, r: Any, caller: Caller) -> bytes:
        _check_txn(r, self._member.options.txn_ops_max)
        _intervals(r.success)
        _intervals(r.failure)
        read_only = _read_only(r)
        if not read_only:
            cost = _txn_cost(r)
            if cost:
                await self._member.check_space(cost)
            self._check_size(r)
        if self._auth.enabled:
            self._check_permissions(r, caller)
        txn = _translate(r)
        result = await self._store.txn(txn.compare, txn.success, txn.failure)
        return _txn_response(self._header.encode(result.revision), r, result, result.revision - _changed(result))

    async def Compact(self, r: Any, caller: Caller) -> bytes:
        await self._store.compact(r.revision)
        while r.physical and self._store.trimming:
            await asyncio.sleep(PRUNE_POLL_SECONDS)
        return self._header.encode(self._store.revision)

    def _check_size(self, r: Any) -> None:
        if r.ByteSize() > self._request_bytes_max:
            raise errors.REQUEST_TOO_LARGE

    def _check_permissions(self, r: Any, caller: Caller) -> None:
        for c in r.compare:
            self._auth.check(caller, c.key, c.range_end, READ)
        for op in (*r.success, *r.failure):
            kind = op.WhichOneof("request")
            if kind == "request_range":
                self._auth.check(caller, op.request_range.key, op.request_range.range_end, READ)
            elif kind == "request_put":
                self._check_permissions_put(op.request_put, caller)
            elif kind == "request_delete_range":
                self._check_permissions_delete(op.request_delete_range, caller)
            else:
                self._check_permissions(op.request_txn, caller)

    def _check_permissions_put(self, r: Any, caller: Caller) -> None:
        """Who puts on a lease could have its keys deleted: all of them must be writable."""
        self._auth.check(caller, r.key, b"", WRITE)
        if r.lease:
            self._auth.check_lease(caller, r.lease)
        if r.prev_kv:
            self._auth.check(caller, r.key, b"", READ)

    def _check_permissions_delete(self, r: Any, caller: Caller) -> None:
        self._auth.check(caller, r.key, r.range_end, WRITE)
        if r.prev_kv:
            self._auth.check(caller, r.key, r.range_end, READ)


# Checks of a request


def _check_range(r: Any) -> None:
    if not r.key:
        raise errors.EMPTY_KEY
    if not (0 <= r.sort_order <= 2 and 0 <= r.sort_target <= 4):
        raise errors.INVALID_SORT


def _check_put(r: Any) -> None:
    if not r.key:
        raise errors.EMPTY_KEY
    if r.ignore_value and r.value:
        raise errors.VALUE_PROVIDED
    if r.ignore_lease and r.lease:
        raise errors.LEASE_PROVIDED


def _check_delete(r: Any) -> None:
    if not r.key:
        raise errors.EMPTY_KEY


def _check_txn(r: Any, ops_max: int) -> None:
    size = max(len(r.compare), len(r.success), len(r.failure))
    if size > ops_max:
        raise errors.TOO_MANY_OPS
    if not all(c.key for c in r.compare):
        raise errors.EMPTY_KEY
    for op in (*r.success, *r.failure):
        kind = op.WhichOneof("request")
        if kind == "request_range":
            _check_range(op.request_range)
        elif kind == "request_put":
            _check_put(op.request_put)
        elif kind == "request_delete_range":
            _check_delete(op.request_delete_range)
        elif kind == "request_txn":
            _check_txn(op.request_txn, ops_max - size)
        else:
            raise errors.KEY_NOT_FOUND


def _intervals(ops: Sequence[Any]) -> tuple[set[bytes], list[Any]]:
    """No key may be put twice, or put and deleted, on any way through the operations -> (keys put, deletes)."""
    dels = [op.request_delete_range for op in ops if op.WhichOneof("request") == "request_delete_range"]
    puts: set[bytes] = set()
    for op in ops:
        if op.WhichOneof("request") != "request_txn":
            continue
        then_puts, then_dels = _intervals(op.request_txn.success)
        else_puts, else_dels = _intervals(op.request_txn.failure)
        if any(key in puts or _deleted(key, dels) for key in then_puts | else_puts):  # then and else exclude one another
            raise errors.DUPLICATE_KEY
        puts |= then_puts | else_puts
        dels = dels + then_dels + else_dels
    for op in ops:
        if op.WhichOneof("request") == "request_put":
            key = op.request_put.key
            if key in puts or _deleted(key, dels):
                raise errors.DUPLICATE_KEY
            puts.add(key)
    return puts, dels


def _deleted(key: bytes, dels: Sequence[Any]) -> bool:
    return any(key == d.key if not d.range_end else key >= d.key and (d.range_end == b"\0" or key < d.range_end) for d in dels)


def _read_only(r: Any) -> bool:
    return all(
        op.WhichOneof("request") == "request_range" or (op.WhichOneof("request") == "request_txn" and _read_only(op.request_txn))
        for op in (*r.success, *r.failure)
    )


def _put_cost(r: Any) -> int:
    return KEY_OVERHEAD_BYTES + len(r.key) + len(r.value)


def _txn_cost(r: Any) -> int:
    return max(_ops_cost(r.success), _ops_cost(r.failure))


def _ops_cost(ops: Sequence[Any]) -> int:
    total = 0
    for op in ops:
        kind = op.WhichOneof("request")
        if kind == "request_put":
            total += _put_cost(op.request_put)
        elif kind == "request_txn":
            total += _txn_cost(op.request_txn)
    return total


# Translation


def _put_ops(r: Any) -> list[interface.Operation]:
    put = Put(r.key, None if r.ignore_value else r.value, None if r.ignore_lease else r.lease)
    return [Range(r.key), put] if r.prev_kv else [put]


def _translate(r: Any) -> Txn:
    return Txn([_compare(c) for c in r.compare], _operations(r.success), _operations(r.failure))


def _compare(c: Any) -> interface.Compare:
    target, operand = _TARGETS[c.target]
    return interface.Compare(c.key, target, _OPS[c.result], getattr(c, operand), c.range_end)  # type: ignore[arg-type]


def _operations(ops: Sequence[Any]) -> list[interface.Operation]:
    translated: list[interface.Operation] = []
    for op in ops:
        kind = op.WhichOneof("request")
        if kind == "request_range":
            r = op.request_range
            translated.append(Range(r.key, r.range_end, r.revision, _fetched(r), r.count_only))
        elif kind == "request_put":
            translated += _put_ops(op.request_put)
        elif kind == "request_delete_range":
            translated.append(Delete(op.request_delete_range.key, op.request_delete_range.range_end))
        else:
            translated.append(_translate(op.request_txn))
    return translated


# Answers


def _sifts(r: Any) -> bool:
    """Whether the range's own order and limit are not enough."""
    return bool(r.sort_target or _sifts_all(r))


def _sifts_all(r: Any) -> bool:
    return bool(r.sort_order or r.min_mod_revision or r.max_mod_revision or r.min_create_revision or r.max_create_revision)


def _fetched(r: Any) -> int:
    """How many keys are looked at: a target without an order sorts (etcd's way) only the first `limit` + 1."""
    if _sifts_all(r):
        return 0
    return r.limit + 1 if r.sort_target and r.limit > 0 else max(r.limit, 0)


def _sift(r: Any, kvs: list[KeyValue]) -> list[KeyValue]:
    """Filter and sort; ties stay in the keys' order."""
    if r.max_mod_revision:
        kvs = [kv for kv in kvs if kv.mod_revision <= r.max_mod_revision]
    if r.min_mod_revision:
        kvs = [kv for kv in kvs if kv.mod_revision >= r.min_mod_revision]
    if r.max_create_revision:
        kvs = [kv for kv in kvs if kv.create_revision <= r.max_create_revision]
    if r.min_create_revision:
        kvs = [kv for kv in kvs if kv.create_revision >= r.min_create_revision]
    if r.sort_target or r.sort_order == 2:
        kvs = sorted(kvs, key=_SORT_KEYS[r.sort_target], reverse=r.sort_order == 2)
    return kvs


def _range_response(header: bytes, r: Any, kvs: list[KeyValue], count: int) -> bytes:
    more = False
    if _sifts(r):
        kvs = _sift(r, kvs)
        if 0 < r.limit < len(kvs):
            kvs, more = kvs[: r.limit], True
    elif not r.count_only:
        more = count > len(kvs)
    return header + wire.key_values(0x12, kvs, r.keys_only) + wire.varint(0x18, more) + wire.varint(0x20, count)


def _put_response(header: bytes, r: Any, results: Iterator[Any]) -> bytes:
    prev = wire.key_values(0x12, next(results).kvs) if r.prev_kv else b""
    next(results)
    return header + prev


def _delete_response(header: bytes, r: Any, deleted: list[KeyValue]) -> bytes:
    return header + wire.varint(0x10, len(deleted)) + (wire.key_values(0x1A, deleted) if r.prev_kv else b"")


def _changed(result: TxnResult) -> bool:
    return any(isinstance(x, KeyValue) or (isinstance(x, list) and x) or (isinstance(x, TxnResult) and _changed(x)) for x in result.results)


def _txn_response(header: bytes, r: Any, result: TxnResult, revision: int) -> bytes:
    """`revision` is the store's before it: what operations say until the first one that changes something."""
    out = [header, wire.varint(0x10, result.succeeded)]
    results = iter(result.results)
    for op in r.success if result.succeeded else r.failure:
        kind = op.WhichOneof("request")
        if kind == "request_range":
            read: RangeResult = next(results)
            response = wire.nested(0x0A, _range_response(_bare(read.revision), op.request_range, read.kvs, read.count))
        elif kind == "request_put":
            revision = result.revision
            response = wire.nested(0x12, _put_response(_bare(result.revision), op.request_put, results))
        elif kind == "request_delete_range":
            deleted = next(results)
            revision = result.revision if deleted else revision
            response = wire.nested(0x1A, _delete_response(_bare(revision), op.request_delete_range, deleted))
        else:
            inner = next(results)
            response = wire.nested(0x22, _txn_response(_bare(0), op.request_txn, inner, revision))
            revision = inner.revision
        out.append(wire.nested(0x1A, response))
    return b"".join(out)


def _bare(revision: int) -> bytes:
    """The header of an answer inside a transaction: the revision alone."""
    return wire.nested(0x0A, wire.varint(0x18, revision))
