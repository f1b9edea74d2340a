"""Leader election on a Lease (coordination.k8s.io/v1), as client-go's leaderelection.

Laws:
1. At most one candidate acts as leader while clocks run at about the same rate: a candidate takes a lease over only after it has watched it stand
   unrenewed for its whole duration on its own monotonic clock (the holder's wall clock is never trusted), and a leader that
   could not renew within `renew_deadline_seconds` (shorter than the duration) stops at once.
2. Every change of the Lease is guarded by its resourceVersion.
3. A leader that stops in an orderly way empties the holder, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.rest import Client
from fastkube.runtime import clock, entropy, logs

LEASES = "coordination.k8s.io/v1/leases"
LEASE_SECONDS = 15.0
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0
RELEASE_TIMEOUT_SECONDS = 2.0

log = logs.get("leader")


class LostLeadership(Exception):
    """The lease could not be renewed in time; what ran as leader was cancelled."""


class LeaderElector:
    """One candidate for the lease NAMESPACE/NAME. `identity` must be unique among candidates."""

    def __init__(
        self,
        client: Client,
        name: str,
        identity: str,
        namespace: str = "kube-system",
        *,
        lease_seconds: float = LEASE_SECONDS,
        renew_deadline_seconds: float = RENEW_DEADLINE_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        if not lease_seconds > renew_deadline_seconds > retry_seconds > 0:
            raise ValueError("leader election wants lease duration > renew deadline > retry period > 0")
        self.identity = identity
        self.is_leader = False
        self._client, self._name, self._namespace = client, name, namespace
        self._lease_seconds, self._renew_deadline_seconds, self._retry_seconds = lease_seconds, renew_deadline_seconds, retry_seconds
        self._observed: dict[str, Any] | None = None
        self._observed_at = 0.0

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then run `work` until it ends, we are cancelled, or the lease is lost (raises LostLeadership)."""
        await self._acquire()
        self.is_leader = True
        log.info("became leader", lease=f"{self._namespace}/{self._name}", identity=self.identity)
        working = asyncio.ensure_future(work())
        renewing = asyncio.ensure_future(self._renew())
        try:
            done, _ = await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                working.result()
            else:
                renewing.result()
        finally:
            self.is_leader = False
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)
            await self._release()

    async def _acquire(self) -> None:
        while not await self._try():
            await asyncio.sleep(entropy.jitter(self._retry_seconds, 1.2))

    async def _renew(self) -> None:
        renewed_at = clock.monotonic()
        while True:
            await asyncio.sleep(self._retry_seconds)
            left = self._renew_deadline_seconds - (clock.monotonic() - renewed_at)
            started = clock.monotonic()
            try:
                async with asyncio.timeout(max(left, 0.01)):
                    ok = await self._try()
            except TimeoutError:
                ok = False
            if ok:
                renewed_at = started
            elif clock.monotonic() - renewed_at >= self._renew_deadline_seconds or self._held_by_other():
                raise LostLeadership(f"lease {self._namespace}/{self._name} was not renewed in time")

    def _held_by_other(self) -> bool:
        return bool(self._observed and self._observed["spec"].get("holderIdentity") not in (self.identity, "", None))

    async def _try(self) -> bool:
        """One attempt to take or renew the lease; whether we hold it now."""
        try:
            try:
                lease = await self._client.get(LEASES, self._name, self._namespace)
            except ApiError as e:
                if e.code != 404:
                    raise
                self._observe(await self._client.create(LEASES, self._fresh(), self._namespace))
                return True
            self._observe(lease)
            spec = dict(lease.get("spec") or {})
            holder = spec.get("holderIdentity")
            if holder and holder != self.identity and clock.monotonic() - self._observed_at < float(spec.get("leaseDurationSeconds") or self._lease_seconds):
                return False
            now = clock.rfc3339_micro()
            if holder != self.identity:
                spec["acquireTime"] = now
                spec["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
            spec.update(holderIdentity=self.identity, renewTime=now, leaseDurationSeconds=int(self._lease_seconds) or 1)
            self._observe(await self._client.update(LEASES, {**lease, "spec": spec}))
            return True
        except ApiError as e:
            log.debug("lease attempt failed", lease=self._name, error=e.message)
            return False

    def _fresh(self) -> dict[str, Any]:
        now = clock.rfc3339_micro()
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self._lease_seconds) or 1,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}

    def _observe(self, lease: dict[str, Any]) -> None:
        version = lease["metadata"].get("resourceVersion")
        if self._observed is None or self._observed["metadata"].get("resourceVersion") != version:
            self._observed, self._observed_at = lease, clock.monotonic()
        self._observed.setdefault("spec", {})

    async def _release(self) -> None:
        """Empty the holder if it is us; a failure only means that the next leader waits."""
        lease = self._observed
        if lease is None or lease["spec"].get("holderIdentity") != self.identity:
            return
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": clock.rfc3339_micro()}
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
                await self._client.update(LEASES, {**lease, "spec": spec})
        except (ApiError, TimeoutError) as e:
            log.debug("lease could not be released", lease=self._name, error=str(e))
