"""What all controllers stand on: informers, one queue of keys, N workers that reconcile one key at a time.

    class Hello(Controller):
        name = "hello-controller"

        def setup(self) -> None:
            self.widgets = self.informer("example.com/v1/widgets")
            self.widgets.add_handler(*self.enqueue_all())

        async def reconcile(self, key: str) -> float | None:
            ...                                        # make the world as the spec says; return seconds to look again, or None

Laws:
1. `reconcile` gets a key, not an event: it reads what is from the informers and may be called at any time, again, and after a restart.
2. It raises to be called again with back-off (ApiError: conflicts and the like quietly, others with a warning).
3. One key is never reconciled twice at the same time; no key starves another (FIFO).
4. Work starts only after every informer the controller asked for holds its first list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.client.events import EventRecorder
from fastkube.client.informer import Informer, InformerFactory, key_of
from fastkube.client.rest import Client
from fastkube.client.workqueue import Workqueue
from fastkube.controllers.backends import Backends
from fastkube.controllers.meta import Object, version
from fastkube.controllers.podowners import PodOwners
from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor

EXPECTATIONS_TIMEOUT_SECONDS = 300.0  # after which a create or delete that was never seen is no longer waited for
BURST_MAX = 500  # creates or deletes of one reconcile
QUIET_CODES = (404, 409)  # not there (any more), changed meanwhile: the world moved, look again

log = logs.get("controllers")


@dataclass(slots=True)
class Options:
    """Settings of controllers, upstream's flags under their own names."""

    cluster_cidr: str = ""
    allocate_node_cidrs: bool = False
    node_cidr_mask_size: int = 24
    service_cluster_ip_range: str = ""
    root_ca: bytes = b""
    cluster_signing_cert: bytes = b""
    cluster_signing_key: bytes = b""
    cluster_signing_seconds: float = 365 * 86400.0
    node_monitor_period_seconds: float = 5.0
    node_monitor_grace_seconds: float = 40.0
    node_startup_grace_seconds: float = 60.0
    node_eviction_rate: float = 0.1  # nodes per second
    secondary_node_eviction_rate: float = 0.01
    unhealthy_zone_threshold: float = 0.55
    large_cluster_size_threshold: int = 50
    terminated_pod_gc_threshold: int = 12500
    max_endpoints_per_slice: int = 100
    concurrent: dict[str, int] = field(default_factory=dict)  # controller name -> workers
    local_path: str = "/var/lib/fastkube/local-path"


class Context:
    """What a controller is given: clients, shared informers, options, and the supervisor that owns its tasks."""

    def __init__(self, informers: InformerFactory, client_for: Callable[[str], Client], options: Options, supervisor: Supervisor) -> None:
        self.informers = informers
        self.client_for = client_for
        self.options = options
        self.supervisor = supervisor
        self._pod_owners: PodOwners | None = None
        self._backends: Backends | None = None

    def pod_owners(self) -> PodOwners:
        """The router of pod events that all workload controllers share."""
        if self._pod_owners is None:
            self._pod_owners = PodOwners(self.informers.informer("v1/pods"))
        return self._pod_owners

    def backends(self) -> Backends:
        """Services and the pods that they select, shared by the endpoint controllers."""
        if self._backends is None:
            self._backends = Backends(self.informers.informer("v1/services"), self.informers.informer("v1/pods"))
        return self._backends


class Controller:
    """Base of all controllers. Subclasses set `name`, may override `setup`, `reconcile` and `loops`."""

    name: ClassVar[str] = ""  # upstream's name, as in --controllers
    account: ClassVar[str] = ""  # its service account in kube-system; default: the name
    component: ClassVar[str] = ""  # who events are from; default: the name
    workers: ClassVar[int] = 5

    def __init__(self, context: Context) -> None:
        self.context = context
        self.options = context.options
        self.client = context.client_for(self.account or self.name)
        self.queue = Workqueue(self.name)
        self.recorder = EventRecorder(self.client, self.component or self.name)
        self.reconciled = 0
        self.failed = 0
        self._informers: list[Informer] = []
        self._written: dict[str, int] = {}  # uid -> version
        self.setup()

    # --- for subclasses ---

    def setup(self) -> None:
        """Ask for informers, add indexes and handlers."""

    async def reconcile(self, key: str) -> float | None:
        """Bring one object's world in order; seconds until it should be looked at again, or None."""
        raise NotImplementedError

    def loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Further tasks by name, run while the controller runs."""
        return {}

    def informer(self, resource: str | Resource, namespace: str | None = None, **selectors: str) -> Informer:
        informer = self.context.informers.informer(resource, namespace, **selectors)
        if informer not in self._informers:
            self._informers.append(informer)
        return informer

    def enqueue(self, obj: Object) -> None:
        self.queue.add(key_of(obj))

    def enqueue_all(self) -> tuple[Callable[[Object], None], Callable[[Object, Object], None], Callable[[Object], None]]:
        """Handlers that enqueue the object itself on every change."""
        return self.enqueue, lambda old, new: self.enqueue(new), self.enqueue

    def wrote(self, answer: Object) -> None:
        """Remember the version that a write of ours made, so that `behind` can tell an informer that has not seen it."""
        self._written[answer["metadata"]["uid"]] = version(answer)

    def behind(self, obj: Object) -> bool:
        """The informer's `obj` is older than what we wrote: its event is on the way and will enqueue the key; acting now would act twice."""
        key = obj["metadata"]["uid"]
        written = self._written.get(key)
        if written is None:
            return False
        if version(obj) >= written:
            del self._written[key]
            return False
        return True

    # --- the driver ---

    async def run(self) -> None:
        """Wait for the informers, then work until cancelled."""
        await asyncio.gather(*(i.synced() for i in self._informers))
        async with Supervisor(self.name) as supervisor:
            self.recorder.start(supervisor)
            for i in range(self.options.concurrent.get(self.name, self.workers)):
                supervisor.start(f"worker {i}", self._work)
            for name, loop in self.loops().items():
                supervisor.start(name, loop)
            await asyncio.Event().wait()

    async def _work(self) -> None:
        queue = self.queue
        while True:
            key = await queue.get()
            try:
                again = await self.reconcile(key)  # type: ignore[arg-type]
                self.reconciled += 1
                queue.forget(key)
                if again is not None:
                    queue.add_after(key, again)
            except asyncio.CancelledError:
                raise
            except ApiError as e:
                self.failed += 1
                level = log.debug if e.code in QUIET_CODES else log.warning
                level("reconcile failed, trying again", controller=self.name, key=key, error=e.message)
                queue.add_rate_limited(key)
            except Exception:
                self.failed += 1
                log.exception("reconcile failed, trying again", controller=self.name, key=key)
                queue.add_rate_limited(key)
            finally:
                queue.done(key)


class Pace:
    """Bounds how often one key is written: `burst` times at once, then once per `interval_seconds` (GCRA: one number per key).

    A small workload never meets it; 3,000 pods that become ready within seconds cost a few dozen status writes, not 3,000.
    """

    def __init__(self, interval_seconds: float, burst: int) -> None:
        self._interval, self._burst = interval_seconds, burst
        self._next: dict[str, float] = {}

    def wait(self, key: str) -> float:
        """Seconds until `key` may be written; <= 0: now."""
        due = self._next.get(key)
        return due - self._burst * self._interval - clock.monotonic() if due is not None else 0.0

    def spend(self, key: str) -> None:
        now = clock.monotonic()
        due = max(self._next.get(key, 0.0), now) + self._interval
        self._next[key] = min(due, now + (self._burst + 1) * self._interval)  # who wrote without asking waits no longer for it

    def forget(self, key: str) -> None:
        self._next.pop(key, None)


class Expectations:
    """Creations and deletions that were asked for but not seen yet, per key (client-go's controller expectations).

    Acting on a cache that lags behind one's own writes makes duplicates; so a controller records what it asks for, and `satisfied` says
    whether all of it has come back. Deletions are tracked by name, so that one seen twice counts once. What never comes back is
    forgotten after EXPECTATIONS_TIMEOUT_SECONDS.
    """

    def __init__(self) -> None:
        self._expected: dict[str, _Expected] = {}

    def satisfied(self, key: str) -> bool:
        expected = self._expected.get(key)
        if expected is None:
            return True
        if (expected.creations <= 0 and not expected.deletions) or clock.monotonic() - expected.since > EXPECTATIONS_TIMEOUT_SECONDS:
            del self._expected[key]
            return True
        return False

    def expect_creations(self, key: str, count: int) -> None:
        self._expect(key).creations += count

    def expect_deletions(self, key: str, names: list[str]) -> None:
        self._expect(key).deletions.update(names)

    def _expect(self, key: str) -> _Expected:
        expected = self._expected.setdefault(key, _Expected())
        expected.since = clock.monotonic()
        return expected

    def created(self, key: str, count: int = 1) -> None:
        expected = self._expected.get(key)
        if expected is not None:
            expected.creations -= count

    def deleted(self, key: str, name: str) -> None:
        expected = self._expected.get(key)
        if expected is not None:
            expected.deletions.discard(name)

    def forget(self, key: str) -> None:
        self._expected.pop(key, None)


@dataclass(slots=True)
class _Expected:
    creations: int = 0
    deletions: set[str] = field(default_factory=set)
    since: float = 0.0


async def slow_start(count: int, act: Callable[[int], Awaitable[Any]], first_batch: int = 1) -> tuple[int, Exception | None]:
    """Do `act(i)` for i < count in batches of 1, 2, 4 ...; a batch with failures is the last one.

    Returns (how many were tried, the first failure), so that a quota or a webhook that refuses everything is asked once, not 500 times.
    """
    tried, batch = 0, first_batch
    while tried < count:
        batch = min(batch, count - tried)
        results = await asyncio.gather(*(act(i) for i in range(tried, tried + batch)), return_exceptions=True)
        tried += batch
        batch *= 2
        for result in results:
            if isinstance(result, Exception):
                return tried, result
            if isinstance(result, BaseException):
                raise result
    return tried, None
