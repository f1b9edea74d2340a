"""Objects that go by themselves: events, after --event-ttl, by leases of the store.

Many objects share a lease (as upstream's lease manager has it): one is granted for at most SHARED_SECONDS_MAX and SHARED_OBJECTS_MAX, and
lives so much longer.
"""

from __future__ import annotations

import asyncio

from fastkube.runtime import clock
from fastkube.store.interface import Store

SHARED_SECONDS_MAX = 60
SHARED_OBJECTS_MAX = 1000


class Expiry:
    def __init__(self, store: Store, ttl_seconds: int) -> None:
        self._store = store
        self._ttl = ttl_seconds
        self._lease = 0
        self._granted = 0.0
        self._objects = 0
        self._granting = asyncio.Lock()

    async def lease(self) -> int:
        """The lease to store the next object with. StoreError."""
        async with self._granting:
            if not self._lease or self._objects >= SHARED_OBJECTS_MAX or clock.monotonic() - self._granted > SHARED_SECONDS_MAX:
                self._lease = await self._store.lease_grant(self._ttl + SHARED_SECONDS_MAX)
                self._granted, self._objects = clock.monotonic(), 0
            self._objects += 1
            return self._lease
