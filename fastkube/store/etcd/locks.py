"""v3lock and v3election: etcd's recipes, run by the server. Both queue on keys NAME/LEASE in order of creation; the first one holds the lock or leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastkube._ext.tree import KeyValue
from fastkube.store.etcd import errors, messages
from fastkube.store.etcd.auth import READ, WRITE, Auth, Caller
from fastkube.store.etcd.errors import EtcdError
from fastkube.store.etcd.member import Member
from fastkube.store.interface import Compacted, Compare, Delete, Put, Range, WatchCancelled

SESSION_TTL_SECONDS = 60  # of the lease made for a caller that brings none
NO_LEADER = EtcdError("UNKNOWN", "election: no leader")
NOT_LEADER = EtcdError("UNKNOWN", "election: not leader")


class Queue:
    """Who waits where."""

    def __init__(self, member: Member, auth: Auth) -> None:
        self.member = member
        self.store = member.store
        self._auth = auth

    def check(self, caller: Caller, name: bytes) -> None:
        """Recipes read and write all of NAME/."""
        if self._auth.enabled:
            prefix = name + b"/"
            self._auth.check(caller, prefix, _after(prefix), READ)
            self._auth.check(caller, prefix, _after(prefix), WRITE)

    def check_key(self, caller: Caller, key: bytes) -> None:
        if self._auth.enabled:
            self._auth.check(caller, key, b"", WRITE)

    async def enter(self, name: bytes, lease: int, value: bytes) -> KeyValue:
        """Take the lease's place in the queue, or the one it has, and wait for the front -> its key. The place is given up when the caller goes."""
        if not lease:
            lease = await self.store.lease_grant(SESSION_TTL_SECONDS)
        key = b"%s/%x" % (name, lease)
        result = await self.store.txn([Compare(key, "create", "=", 0)], [Put(key, value, lease)], [Range(key)])
        mine: KeyValue = result.results[0] if result.succeeded else result.results[0].kvs[0]
        try:
            if not result.succeeded and mine.value != value:
                mine = (await self.store.txn([Compare(key, "create", "=", mine.create_revision)], [Put(key, value, lease)])).results[0]
            await self._front(name + b"/", mine)
        except BaseException:
            await asyncio.shield(self.store.txn([Compare(key, "create", "=", mine.create_revision)], [Delete(key)]))
            raise
        current = self.store.get(key)
        if current is None or current.create_revision != mine.create_revision:
            raise EtcdError("UNKNOWN", "etcdserver: session is expired" if current is None else "etcdserver: key was taken over")
        return current

    async def _front(self, prefix: bytes, mine: KeyValue) -> None:
        """Wait until nobody who came before is left: each waits for the one right in front, so that a release wakes one."""
        while True:
            before = [kv for kv in self.store.range(prefix, _after(prefix)).kvs if kv.create_revision < mine.create_revision]
            if not before:
                return
            last = max(before, key=lambda kv: kv.create_revision)
            watcher = self.store.watch(last.key, start=self.store.revision + 1)
            try:
                while not any(event.deleted for event in await watcher.next()):
                    pass
            finally:
                watcher.close()

    def first(self, name: bytes) -> KeyValue | None:
        """Who leads."""
        prefix = name + b"/"
        return min(self.store.range(prefix, _after(prefix)).kvs, key=lambda kv: kv.create_revision, default=None)


class Lock:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def Lock(self, r: Any, caller: Caller) -> Any:
        self._queue.check(caller, r.name)
        kv = await self._queue.enter(r.name, r.lease, b"")
        return self._queue.member.answer(messages.LockResponse, key=kv.key)

    async def Unlock(self, r: Any, caller: Caller) -> Any:
        if not r.key:
            raise errors.EMPTY_KEY
        self._queue.check_key(caller, r.key)
        await self._queue.store.txn((), (Delete(r.key),))
        return self._queue.member.answer(messages.UnlockResponse)


class Election:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def Campaign(self, r: Any, caller: Caller) -> Any:
        self._queue.check(caller, r.name)
        kv = await self._queue.enter(r.name, r.lease, r.value)
        leader = messages.LeaderKey(name=r.name, key=kv.key, rev=kv.create_revision, lease=kv.lease)
        return self._queue.member.answer(messages.CampaignResponse, leader=leader)

    async def Proclaim(self, r: Any, caller: Caller) -> Any:
        leader = r.leader
        if not leader.key:
            raise NOT_LEADER
        self._queue.check_key(caller, leader.key)
        held = Compare(leader.key, "create", "=", leader.rev)
        if not (await self._queue.store.txn([held], [Put(leader.key, r.value, leader.lease)])).succeeded:
            raise NOT_LEADER
        return self._queue.member.answer(messages.ProclaimResponse)

    async def Resign(self, r: Any, caller: Caller) -> Any:
        if r.leader.key:
            self._queue.check_key(caller, r.leader.key)
            await self._queue.store.txn([Compare(r.leader.key, "create", "=", r.leader.rev)], [Delete(r.leader.key)])
        return self._queue.member.answer(messages.ResignResponse)

    async def Leader(self, r: Any, caller: Caller) -> Any:
        self._queue.check(caller, r.name)
        kv = self._queue.first(r.name)
        if kv is None:
            raise NO_LEADER
        return self._queue.member.answer(messages.LeaderResponse, kv=_message(kv))

    async def Observe(self, requests: AsyncIterator[Any], send: Callable[[Any], Awaitable[None]], caller: Caller) -> None:
        r = await anext(requests)
        self._queue.check(caller, r.name)
        prefix = r.name + b"/"
        store = self._queue.store
        told = 0
        while True:
            watcher = store.watch(prefix, _after(prefix), start=store.revision + 1)
            try:
                while True:
                    kv = self._queue.first(r.name)
                    if kv is not None and kv.mod_revision != told:
                        told = kv.mod_revision
                        await send(self._queue.member.answer(messages.LeaderResponse, kv=_message(kv)))
                    await watcher.next()
            except (WatchCancelled, Compacted):
                continue  # it did not keep up: what leads now is what counts
            finally:
                watcher.close()


def _message(kv: KeyValue) -> Any:
    return messages.KeyValue(key=kv.key, value=kv.value, create_revision=kv.create_revision, mod_revision=kv.mod_revision, version=kv.version, lease=kv.lease)


def _after(prefix: bytes) -> bytes:
    """The end of the range of all keys with a prefix that ends with "/"."""
    return prefix[:-1] + b"0"
