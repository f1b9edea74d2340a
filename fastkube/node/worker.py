"""One pod's worker: carries out what the state machine plans, and says how the pod is.

Laws:
1. One thing at a time: a pod's actions run one after another in one task. Only its end interrupts them.
2. After every action the runtime is listed again and the plan made anew; nothing is assumed to have worked.
3. The end of a pod: actions stop, containers are killed within the grace (which may only shorten), volumes and cgroups are taken down, the last status is
   written, and only then the API is told that the pod may go.
4. A worker is over when its pod is gone from its source and nothing of it is left on the node.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastkube.node import containerlogs, podspec, podstate, podstatus
from fastkube.node.cgroups import Cgroups
from fastkube.node.cri import Cri, CriError
from fastkube.node.kill import Killer
from fastkube.node.model import Memory, RuntimePod, Termination, Waiting
from fastkube.node.objects import Objects, Tokens
from fastkube.node.probes import Actions, Prober
from fastkube.node.relist import RuntimeView
from fastkube.node.starter import Starter, StartError
from fastkube.node.volumes.manager import MountError, Volumes
from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor

MOUNT_RETRY_SECONDS_MIN, MOUNT_RETRY_SECONDS_MAX = 0.5, 122.0
RUNTIME_RETRY_SECONDS = 1.0
NETWORK_RETRY_SECONDS = 5.0
RESYNC_SECONDS = 60.0
GRACE_SECONDS_MIN = 1  # of a pod that is gone from the API already

log = logs.get("worker")

Object = dict[str, Any]


class StatusSink(Protocol):
    def set(self, pod: Object, status: Object) -> None:
        """The pod's status, to be written soon."""
        ...

    def finish(self, pod: Object) -> None:
        """After the last status: the deleted pod may go from the API."""
        ...


@dataclass(slots=True)
class Parts:
    """What workers share."""

    cri: Cri
    view: RuntimeView
    starter: Starter
    killer: Killer
    volumes: Volumes
    cgroups: Cgroups
    actions: Actions
    statuses: StatusSink
    supervisor: Supervisor
    objects: Objects | None
    tokens: Tokens | None
    event: Callable[[Object, str, str, str, str], None]
    host_ips: Callable[[], list[str]]
    pod_logs: Path
    network_problem: Callable[[], str]
    no_room: Callable[[Object], tuple[str, str] | None]
    backoff_max: float = podstate.BACKOFF_SECONDS_MAX


class Worker:
    def __init__(self, parts: Parts, pod: Object, known: bool = True) -> None:
        """`known`: the pod is in its source; False for what is found running without one."""
        self.parts = parts
        self.pod = pod
        self.uid = podspec.uid_of(pod)
        self.memory = Memory(start_time=clock.now())
        self.present = known
        self.over = False
        self._wake = asyncio.Event()
        self._wake.set()
        self._wake_at = 0.0
        self._acting: asyncio.Task[None] | None = None
        self._killing: asyncio.Task[None] | None = None
        self._kill_grace = 0
        self._finishing = False
        self._paths: dict[str, Path] | None = None
        self._volumes_dirty = False
        self._mount_retry = MOUNT_RETRY_SECONDS_MIN
        self._cleaned = False
        self._learnt = False
        self._prober = Prober(parts.actions, self.memory, parts.supervisor, parts.event, self.poke)
        if parts.objects is not None:
            parts.objects.register(pod)

    # --- what the agent tells it ---

    def update(self, pod: Object) -> None:
        """A new version of the pod from its source."""
        if self.parts.objects is not None and not self._cleaned and pod["spec"] != self.pod["spec"]:
            self.parts.objects.register(pod)
        if pod["metadata"].get("labels") != self.pod["metadata"].get("labels") or pod["metadata"].get("annotations") != self.pod["metadata"].get("annotations"):
            self._volumes_dirty = True
        self.pod = pod
        self._wake.set()

    def gone(self, last: Object | None = None) -> None:
        """The pod is no longer in its source."""
        if last is not None:
            self.pod = last
        self.present = False
        self._wake.set()

    def terminate(self, termination: Termination) -> None:
        """The node wants the pod to end (eviction, shutdown, deadline)."""
        if self.memory.termination is None:
            self.memory.termination = termination
        self._wake.set()

    def reject(self, reason: str, message: str) -> None:
        """Admission refused it: it never runs here."""
        self.memory.rejected = self.memory.finished = True
        self.parts.event(self.pod, "", "Warning", reason, message)
        self.parts.statuses.set(self.pod, podstatus.rejected(self.pod, reason, f"Pod was rejected: {message}", clock.now()))
        self._wake.set()

    def poke(self) -> None:
        """Something about the pod changed."""
        self._wake.set()

    def objects_changed(self) -> None:
        """A ConfigMap or Secret that it refers to changed."""
        self._volumes_dirty = True
        self.retry()

    def retry(self) -> None:
        """What failed may work now: try at once."""
        self.memory.retry_at.clear()
        self._wake.set()

    @property
    def over_soon(self) -> bool:
        """Whether nothing of it runs for long any more."""
        return self.memory.finished or self.memory.rejected or self.memory.termination is not None

    @property
    def status(self) -> Object:
        """The status as it would be written now."""
        return podstatus.status(self.pod, self.parts.view.get(self.uid), self.memory, clock.now(), self.parts.host_ips())

    # --- its task ---

    async def run(self) -> None:
        """Until the pod is over."""
        try:
            while not self.over:
                await self._sleep()
                try:
                    await self._step()
                except CriError as e:
                    log.warning("the runtime failed, trying again", pod=podspec.key_of(self.pod), error=str(e))
                    self._wake_in(RUNTIME_RETRY_SECONDS)
        finally:
            self._prober.stop()
            for task in (self._acting, self._killing):
                if task is not None:
                    task.cancel()

    async def _sleep(self) -> None:
        until = min(self._wake_at or 1e18, clock.now() + RESYNC_SECONDS)
        try:
            async with asyncio.timeout(max(0.0, until - clock.now())):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        self._wake_at = 0.0

    def _wake_in(self, seconds: float) -> None:
        at = clock.now() + seconds
        self._wake_at = min(self._wake_at or at, at)

    async def _step(self) -> None:
        runtime = self.parts.view.get(self.uid)
        self._learn(runtime)
        self._look_for_end()
        if self._ending:
            await self._end()
            return
        acting = self._acting is not None and not self._acting.done()
        if not acting:
            self._plan(runtime)
        self._probe(runtime)
        self._report(runtime)

    def _consider_resize(self, runtime: RuntimePod) -> None:
        """A resize is carried out when the node has room for it; else it waits, and says why."""
        running = {r.name: r for r in runtime.containers if r.running}
        wanted = any(podstate.resized(c, running[c["name"]], self.memory) for c in podspec.all_containers(self.pod) if c["name"] in running)
        self.memory.resize = self.parts.no_room(self.pod) if wanted else None

    def _plan(self, runtime: RuntimePod) -> None:
        self._consider_resize(runtime)
        plan = podstate.plan(self.pod, runtime, self.memory, clock.now(), self.parts.backoff_max)
        for name, waiting in plan.waiting.items():
            if self.memory.waiting.get(name) != waiting:
                text = f"Back-off restarting failed container {name} in pod {podspec.full_name(self.pod)}"
                self.parts.event(self.pod, name, "Warning", "BackOff", text)
                self.memory.waiting[name] = waiting
        if any(isinstance(a, podstate.KillPod) and a.finished for a in plan.actions):
            self._finishing = True
            self._wake.set()
            return
        refresh = self._paths is not None and (self._volumes_dirty or self._tokens_due())
        if plan.actions or refresh:
            self._acting = self.parts.supervisor.once(f"act {podspec.key_of(self.pod)}", self._act(plan.actions, refresh))
        if plan.wake_at:
            self._wake_in(plan.wake_at - clock.now())
        due = self.parts.volumes.refresh_at.get(self.uid)
        if due is not None:
            self._wake_in(due - clock.monotonic())

    def _tokens_due(self) -> bool:
        return self.parts.volumes.refresh_at.get(self.uid, 1e18) <= clock.monotonic()

    # --- acting ---

    async def _act(self, actions: list[podstate.Action], refresh: bool) -> None:
        try:
            for action in actions:
                if not await self._do(action):
                    break
            if refresh and self._paths is not None:
                await self._mount()
            if actions:
                await self.parts.view.refresh()
        except CriError as e:
            log.warning("an action failed, trying again", pod=podspec.key_of(self.pod), error=str(e))
            await asyncio.sleep(RUNTIME_RETRY_SECONDS)
        finally:
            self._wake.set()

    async def _do(self, action: podstate.Action) -> bool:
        """Carry one action out; False: what follows makes no sense before a new plan."""
        parts, runtime = self.parts, self.parts.view.get(self.uid)
        match action:
            case podstate.KillPod():
                parts.event(self.pod, "", "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
                await parts.killer.pod(self.pod, runtime, podspec.grace_seconds(self.pod))
            case podstate.CreateSandbox(attempt):
                problem = "" if podspec.host_network(self.pod) else parts.network_problem()
                if problem:
                    parts.event(self.pod, "", "Warning", "NetworkNotReady", f"network is not ready: {problem}")
                    self.memory.retry_at[""] = clock.now() + NETWORK_RETRY_SECONDS
                    return False
                if not await self._mount():
                    return False
                try:
                    await parts.starter.sandbox(self.pod, attempt)
                    self.memory.retry_at.pop("", None)
                except StartError as e:
                    self.memory.retry_at[""] = e.retry_at
                    return False
            case podstate.KillContainer(container, _, message):
                ip = runtime.sandbox.ips[0] if runtime.sandbox and runtime.sandbox.ips else ""
                await parts.killer.container(self.pod, container, self._kill_seconds(container.name), message, ip)
            case podstate.ResizeContainer(container):
                spec = podspec.find(self.pod, container.name)
                if spec is not None:
                    await parts.starter.resize(self.pod, spec, container, self.memory)
            case podstate.RemoveContainer(container):
                await parts.cri.remove_container(container.id)
            case podstate.StartContainer(name, attempt, backoff):
                if self._paths is None and not await self._mount():
                    return False
                if backoff is not None:
                    self.memory.backoffs[name] = backoff
                await self._start(name, attempt, runtime)
        return True

    def _kill_seconds(self, name: str) -> int:
        """The grace of a container that failed its liveness or startup probe may be the probe's own."""
        container = podspec.find(self.pod, name) or {}
        for probe in ("livenessProbe", "startupProbe"):
            own = (container.get(probe) or {}).get("terminationGracePeriodSeconds")
            if own is not None:
                return own
        return podspec.grace_seconds(self.pod)

    async def _start(self, name: str, attempt: int, runtime: RuntimePod) -> None:
        spec = podspec.find(self.pod, name)
        if spec is None or runtime.sandbox is None:
            return
        try:
            await self.parts.starter.container(self.pod, spec, attempt, runtime, self._known_addresses(runtime), self._paths or {}, self.memory)
            self.memory.waiting.pop(name, None)
            self.memory.retry_at.pop(name, None)
        except StartError as e:
            self.memory.waiting[name] = Waiting(e.reason, e.message)
            if e.retry_at:
                self.memory.retry_at[name] = e.retry_at

    def _known_addresses(self, runtime: RuntimePod) -> Object:
        """podIP and hostIP for variables and files, as they are now."""
        return podstatus.addresses(runtime, self.parts.host_ips())

    async def _mount(self) -> bool:
        """Volumes in place and up to date; says so and plans another try when they are not."""
        self._volumes_dirty = False
        try:
            self._paths = await self.parts.volumes.set_up(self.pod, self._known_addresses(self.parts.view.get(self.uid)))
            self._mount_retry = MOUNT_RETRY_SECONDS_MIN
            return True
        except MountError as e:
            self.parts.event(self.pod, "", "Warning", "FailedMount", str(e))
            self.memory.retry_at[""] = clock.now() + self._mount_retry
            for container in podspec.all_containers(self.pod):
                self.memory.retry_at.setdefault(container["name"], clock.now() + self._mount_retry)
            self._mount_retry = min(self._mount_retry * 2, MOUNT_RETRY_SECONDS_MAX)
            return False

    # --- looking ---

    def _learn(self, runtime: RuntimePod) -> None:
        """Drop what was remembered of runs that are gone; after a restart of the agent take readiness over from the status in the API."""
        memory = self.memory
        alive = {r.id for r in runtime.containers if not r.dead}
        ended = {r.id for r in runtime.containers if r.dead}
        tables: list[dict[str, Any]] = [memory.ready, memory.started, memory.unhealthy, memory.hooked, memory.applied]
        for table in tables:
            for id in ended & table.keys():
                del table[id]
        for run in runtime.containers:
            if run.running:
                memory.waiting.pop(run.name, None)
                memory.retry_at.pop(run.name, None)
        if not self._learnt:
            self._learnt = True
            for where in ("initContainerStatuses", "containerStatuses"):
                for status in (self.pod.get("status") or {}).get(where) or ():
                    id = (status.get("containerID") or "").rpartition("//")[2]
                    if id in alive:
                        memory.ready[id], memory.started[id] = bool(status.get("ready")), bool(status.get("started"))
                        if "resources" in status:
                            memory.applied.setdefault(id, status["resources"])
            if (self.pod.get("status") or {}).get("phase") in podstatus.TERMINAL:
                self._finishing = True

    def _look_for_end(self) -> None:
        meta, memory = self.pod["metadata"], self.memory
        if not self.present or meta.get("deletionTimestamp"):
            grace = max(podspec.grace_seconds(self.pod), 0 if self.present else GRACE_SECONDS_MIN)
            if memory.termination is None:
                memory.termination = Termination(grace)
            elif grace < memory.termination.grace_seconds:
                memory.termination.grace_seconds = grace
            return
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        started = (self.pod.get("status") or {}).get("startTime")
        if deadline is not None and memory.termination is None and not memory.finished and not self._finishing:
            left = (clock.parse(started) if started else memory.start_time) + deadline - clock.now()
            if left <= 0:
                text = "Pod was active on the node longer than the specified deadline"
                self.parts.event(self.pod, "", "Normal", "DeadlineExceeded", text)
                memory.termination = Termination(podspec.grace_seconds(self.pod), "DeadlineExceeded", text, "Failed")
            else:
                self._wake_in(left)

    @property
    def _ending(self) -> bool:
        return self.memory.termination is not None or self._finishing or self.memory.finished

    def _probe(self, runtime: RuntimePod) -> None:
        ips = self.parts.host_ips() if podspec.host_network(self.pod) else runtime.sandbox.ips if runtime.sandbox else ()
        self._prober.sync(self.pod, {r.name: r for r in runtime.containers if r.running}, ips[0] if ips else "")

    def _report(self, runtime: RuntimePod) -> None:
        if not self.memory.rejected:
            self.parts.statuses.set(self.pod, podstatus.status(self.pod, runtime, self.memory, clock.now(), self.parts.host_ips()))

    # --- the end ---

    async def _end(self) -> None:
        if self._acting is not None and not self._acting.done():
            self._acting.cancel()
            await asyncio.wait([self._acting])
        self._prober.stop()
        if not self.memory.finished and not self.memory.rejected:
            await self._kill()
        if self.memory.finished:
            await self._clean()
        self._report(self.parts.view.get(self.uid))
        if self.memory.finished:
            if not self.present:
                await self._forget()
            elif self.pod["metadata"].get("deletionTimestamp") and not podspec.is_static(self.pod):
                self.parts.statuses.finish(self.pod)

    async def _kill(self) -> None:
        """Get the killing going, hurry it when the grace got shorter, and see whether it is done."""
        grace = self.memory.termination.grace_seconds if self.memory.termination else podspec.grace_seconds(self.pod)
        if self._killing is None:
            self._start_killing(grace)
        elif not self._killing.done() and grace < self._kill_grace:
            self._killing.cancel()
            await asyncio.wait([self._killing])
            self._start_killing(grace)
        elif self._killing.done():
            if not self.parts.view.get(self.uid).active and not self._killing.cancelled() and self._killing.result():
                self.memory.finished = True
            else:
                self._killing = None
                self._wake_in(RUNTIME_RETRY_SECONDS)

    def _start_killing(self, grace: int) -> None:
        self._kill_grace = grace
        self._killing = self.parts.supervisor.once(f"kill {podspec.key_of(self.pod)}", self._kill_now(grace))

    async def _kill_now(self, grace: int) -> bool:
        try:
            await self.parts.view.refresh()
            await self.parts.killer.pod(self.pod, self.parts.view.get(self.uid), grace)
            await self.parts.view.refresh()
            return True
        except CriError as e:
            log.warning("could not kill a pod, trying again", pod=podspec.key_of(self.pod), error=str(e))
            return False
        finally:
            self._wake.set()

    async def _clean(self) -> None:
        """Once everything has ended: volumes and cgroups go, the containers stay for their logs until the pod is deleted."""
        if self._cleaned:
            return
        self._cleaned = True
        self._paths = None
        await self.parts.volumes.tear_down(self.uid)
        self.parts.cgroups.remove(self.uid)
        if self.parts.objects is not None:
            self.parts.objects.unregister(self.uid)
        if self.parts.tokens is not None:
            self.parts.tokens.forget(self.uid)

    async def _forget(self) -> None:
        """The pod is gone: so are its containers and its logs."""
        runtime = self.parts.view.get(self.uid)
        for sandbox in runtime.sandboxes:
            try:
                await self.parts.cri.remove_sandbox(sandbox.id)
            except CriError as e:
                if not e.gone:
                    raise
        if runtime.sandboxes:
            await self.parts.view.refresh()
        self.parts.cgroups.remove(self.uid)  # once more: the runtime removes the sandbox's own at its leisure
        logs_at = containerlogs.pod_log_dir(self.parts.pod_logs, self.pod)
        await asyncio.to_thread(shutil.rmtree, logs_at, ignore_errors=True)
        self.over = True
