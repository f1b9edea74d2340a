"""Cluster and Maintenance, as a healthy single member answers them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from fastkube._ext.wal import crc32c
from fastkube.store.etcd import backup, errors, messages
from fastkube.store.etcd.auth import Auth, Caller
from fastkube.store.etcd.member import ALARMS, CLUSTER_VERSION, VERSION, Member

GET, ACTIVATE, DEACTIVATE = 0, 1, 2
HASH_SLICE_BYTES = 256 << 10


class Cluster:
    def __init__(self, member: Member, auth: Auth) -> None:
        self._member = member
        self._auth = auth

    def _self(self) -> Any:
        options = self._member.options
        return messages.Member(ID=self._member.state.member_id, name=options.name, peerURLs=sorted(options.peer_urls), clientURLs=sorted(options.client_urls))

    async def MemberList(self, r: Any, caller: Caller) -> Any:
        return self._member.answer(messages.MemberListResponse, members=[self._self()])

    async def MemberAdd(self, r: Any, caller: Caller) -> Any:
        """One process cannot be two members: the member that is added would never start, and this store goes without a quorum of two."""
        self._auth.check_admin(caller)
        _check_urls(r.peerURLs)
        if set(r.peerURLs) & set(self._member.options.peer_urls):
            raise errors.PEER_URL_EXISTS
        raise errors.UNHEALTHY

    async def MemberRemove(self, r: Any, caller: Caller) -> Any:
        self._auth.check_admin(caller)
        if self._member.state.member_id != r.ID:
            raise errors.MEMBER_NOT_FOUND
        raise errors.MEMBER_NOT_ENOUGH_STARTED

    async def MemberUpdate(self, r: Any, caller: Caller) -> Any:
        self._auth.check_admin(caller)
        _check_urls(r.peerURLs)
        if self._member.state.member_id != r.ID:
            raise errors.MEMBER_NOT_FOUND
        raise errors.MEMBER_NOT_ENOUGH_STARTED

    async def MemberPromote(self, r: Any, caller: Caller) -> Any:
        self._auth.check_admin(caller)
        if self._member.state.member_id != r.ID:
            raise errors.MEMBER_NOT_FOUND
        raise errors.MEMBER_NOT_LEARNER


def _check_urls(urls: Any) -> None:
    """Peer URLs are http or https with a port and nothing more."""
    for url in urls:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.port is not None and not parts.path
        except ValueError:
            good = False
        if not good:
            raise errors.MEMBER_BAD_URLS
    if not urls:
        raise errors.MEMBER_BAD_URLS


class Maintenance:
    def __init__(self, member: Member, auth: Auth) -> None:
        self._member = member
        self._store = member.store
        self._auth = auth

    async def Alarm(self, r: Any, caller: Caller) -> Any:
        member = self._member
        if r.action == ACTIVATE and r.alarm:
            await member.activate(r.memberID, r.alarm)
            alarms = [(r.memberID, int(r.alarm))]
        elif r.action == DEACTIVATE:
            alarms = [(m, a) for m, a in member.state.alarms if r.memberID in (0, m) and r.alarm in (0, a)]
            for alarm in alarms:
                await member.deactivate(*alarm)
        else:
            alarms = [(m, a) for m, a in member.state.alarms if r.memberID in (0, m) and r.alarm in (0, a)]
        return member.answer(messages.AlarmResponse, alarms=[messages.AlarmMember(memberID=m, alarm=a) for m, a in alarms])

    async def Status(self, r: Any, caller: Caller) -> Any:
        member, state, store = self._member, self._member.state, self._store
        return member.answer(
            messages.StatusResponse, version=VERSION, dbSize=store.size, dbSizeInUse=store.size, leader=state.member_id, raftIndex=store.revision,
            raftTerm=state.term, raftAppliedIndex=store.revision, errors=[f"memberID:{m} alarm:{ALARMS[a]} " for m, a in state.alarms],
            storageVersion=CLUSTER_VERSION.rpartition(".")[0] + ".0", dbSizeQuota=member.options.quota_bytes,
        )  # fmt: skip

    async def Defragment(self, r: Any, caller: Caller) -> Any:
        """Nothing lies fragmented in memory; the log is cut to what is not compacted."""
        self._auth.check_admin(caller)
        await self._store.snapshot()
        return self._member.answer(messages.DefragmentResponse)

    async def Hash(self, r: Any, caller: Caller) -> Any:
        self._auth.check_admin(caller)
        digest, _ = await backup.digest(self._store, 0)
        state = crc32c(repr(sorted(self._member.state.auth.items())).encode(), digest)
        return self._member.answer(messages.HashResponse, hash=state)

    async def HashKV(self, r: Any, caller: Caller) -> Any:
        self._auth.check_admin(caller)
        compacted = self._store.compacted
        digest, revision = await backup.digest(self._store, r.revision)
        return self._member.answer(messages.HashKVResponse, hash=digest, compact_revision=compacted, hash_revision=revision)

    async def Snapshot(self, requests: AsyncIterator[Any], send: Callable[[Any], Awaitable[None]], caller: Caller) -> None:
        self._auth.check_admin(caller)
        async for remaining, blob in backup.stream(self._member):
            await send(self._member.answer(messages.SnapshotResponse, remaining_bytes=remaining, blob=blob, version=VERSION))

    async def MoveLeader(self, r: Any, caller: Caller) -> Any:
        self._auth.check_admin(caller)
        if r.targetID != self._member.state.member_id:
            raise errors.BAD_LEADER_TRANSFEREE
        return self._member.answer(messages.MoveLeaderResponse)

    async def Downgrade(self, r: Any, caller: Caller) -> Any:
        """There is no version to go down to."""
        self._auth.check_admin(caller)
        if r.action == 2:
            raise errors.NO_INFLIGHT_DOWNGRADE
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", r.version):
            raise errors.WRONG_DOWNGRADE_VERSION
        raise errors.INVALID_DOWNGRADE_TARGET
