"""Lease: grant, revoke, keep alive, time to live, list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastkube.store.etcd import errors, messages
from fastkube.store.etcd.auth import Auth, Caller
from fastkube.store.etcd.member import Member
from fastkube.store.interface import LeaseNotFound

TTL_SECONDS_MIN = 2  # one and a half election timeouts of etcd's default
TTL_SECONDS_MAX = 9_000_000_000
LEASE_COST_BYTES = 64  # what a lease is taken to cost (etcd's quota)


class Lease:
    def __init__(self, member: Member, auth: Auth) -> None:
        self._member = member
        self._store = member.store
        self._auth = auth

    async def LeaseGrant(self, r: Any, caller: Caller) -> Any:
        await self._member.check_space(LEASE_COST_BYTES)
        if r.TTL > TTL_SECONDS_MAX:
            raise errors.LEASE_TTL_TOO_LARGE
        ttl = max(r.TTL, TTL_SECONDS_MIN)
        lease = await self._store.lease_grant(ttl, r.ID)
        return self._member.answer(messages.LeaseGrantResponse, ID=lease, TTL=ttl)

    async def LeaseRevoke(self, r: Any, caller: Caller) -> Any:
        if self._auth.enabled:
            self._auth.check_lease(caller, r.ID)
        await self._store.lease_revoke(r.ID)
        return self._member.answer(messages.LeaseRevokeResponse)

    async def LeaseKeepAlive(self, requests: AsyncIterator[Any], send: Callable[[Any], Awaitable[None]], caller: Caller) -> None:
        async for r in requests:
            try:
                ttl = self._store.lease_keep_alive(r.ID)
            except LeaseNotFound:
                ttl = 0
            await send(self._member.answer(messages.LeaseKeepAliveResponse, ID=r.ID, TTL=ttl))

    async def LeaseTimeToLive(self, r: Any, caller: Caller) -> Any:
        try:
            status = self._store.lease_status(r.ID)
        except LeaseNotFound:
            return self._member.answer(messages.LeaseTimeToLiveResponse, ID=r.ID, TTL=-1)
        if self._auth.enabled and r.keys:
            self._auth.check_lease_read(caller, status.keys)
        keys = status.keys if r.keys else ()
        return self._member.answer(messages.LeaseTimeToLiveResponse, ID=r.ID, TTL=int(status.remaining), grantedTTL=status.ttl, keys=keys)

    async def LeaseLeases(self, r: Any, caller: Caller) -> Any:
        return self._member.answer(messages.LeaseLeasesResponse, leases=[messages.LeaseStatus(ID=lease) for lease in self._store.leases()])
