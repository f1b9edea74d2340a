"""Leases: a time to live that keys share (etcd's lessor).

A pure state machine: time comes in as an argument, expiries come out as ids; the driver makes them durable and deletes the keys. Deadlines are
not on disk: after a restart every lease has its whole time to live again, so that a restart loses no lease and no key.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lease:
    id: int
    ttl: int  # seconds, as granted
    deadline: float  # monotonic seconds
    keys: set[bytes] = field(default_factory=set)


class Leases:
    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._heap: list[tuple[float, int]] = []  # (deadline when pushed, id): a lease expires no earlier than its earliest entry

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._leases

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, lease_id: int) -> Lease | None:
        return self._leases.get(lease_id)

    def all(self) -> list[Lease]:
        return list(self._leases.values())

    def grant(self, lease_id: int, ttl: int, now: float) -> Lease:
        lease = self._leases[lease_id] = Lease(lease_id, ttl, now + ttl)
        heapq.heappush(self._heap, (lease.deadline, lease_id))
        return lease

    def forget(self, lease_id: int) -> None:
        """It is revoked, or its grant is taken back."""
        self._leases.pop(lease_id, None)

    def restore(self, lease: Lease) -> None:
        """Its revocation is taken back."""
        self._leases[lease.id] = lease
        heapq.heappush(self._heap, (lease.deadline, lease.id))

    def keep_alive(self, lease_id: int, now: float) -> Lease | None:
        """Start its time to live afresh."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.deadline = now + lease.ttl  # the heap's entry comes up early and is then put right: no push per renewal
        return lease

    def attach(self, lease_id: int, key: bytes) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.keys.add(key)

    def detach(self, lease_id: int, key: bytes) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.keys.discard(key)

    def pop_expired(self, now: float) -> int | None:
        """A lease whose deadline has passed, to be revoked; it is not named again."""
        while self._heap and self._heap[0][0] <= now:
            _, lease_id = heapq.heappop(self._heap)
            lease = self._leases.get(lease_id)
            if lease is None:
                continue
            if lease.deadline <= now:
                return lease_id
            heapq.heappush(self._heap, (lease.deadline, lease_id))
        return None
