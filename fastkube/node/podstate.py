"""What to do next for a pod: a pure function of its spec, the runtime's state, the agent's memory and the clock.

Laws:
1. A pod runs in one sandbox. When it is gone, everything of the pod is stopped and a new one made (attempt + 1), unless nothing has to run again.
2. Init containers run one by one to success in the current sandbox; sidecars among them only have to be started. Containers start after the last.
3. A container that ended runs again as its rules, its policy and the pod's policy say, after a back-off that doubles with each end
   and is forgotten when it ran long enough.
4. A pod that is to end gets one action, `KillPod`, and nothing else. So does a pod that is done.
5. Nothing that runs as it should is touched: planning twice on the same state plans nothing twice.

`plan` is called after every change; the driver (worker.py) carries out the actions in order and comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastkube.node import podspec
from fastkube.node.model import Backoff, Container, Memory, Object, RuntimePod, Sandbox, Waiting

BACKOFF_SECONDS_MIN = 10.0
BACKOFF_SECONDS_MAX = 300.0
EXIT_CODE_LOST = 137  # what a run that the runtime lost is taken to have ended with


@dataclass(frozen=True, slots=True)
class KillContainer:
    container: Container
    reason: str  # key of why: "unhealthy", "changed", "unknown"
    message: str


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    container: Container


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    attempt: int


@dataclass(frozen=True, slots=True)
class StartContainer:
    name: str
    attempt: int
    backoff: Backoff | None = None  # to be remembered when the start is tried: this is a restart


@dataclass(frozen=True, slots=True)
class ResizeContainer:
    """Give a running container the resources of its spec."""

    container: Container


@dataclass(frozen=True, slots=True)
class KillPod:
    """Stop what runs of the pod. `finished`: for good; else a new sandbox follows."""

    finished: bool


Action = KillContainer | RemoveContainer | CreateSandbox | StartContainer | ResizeContainer | KillPod


@dataclass(slots=True)
class Plan:
    """`waiting`: containers held back and why; `wake_at`: when to plan again even if nothing happens (0.0: no need)."""

    actions: list[Action] = field(default_factory=list)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    wake_at: float = 0.0

    def wake(self, at: float) -> None:
        self.wake_at = min(self.wake_at or at, at)


def plan(pod: Object, runtime: RuntimePod, memory: Memory, now: float, backoff_max: float = BACKOFF_SECONDS_MAX) -> Plan:
    """The next actions of `pod`."""
    if memory.rejected:
        return Plan()
    if memory.termination is not None or pod["metadata"].get("deletionTimestamp") or memory.finished:
        return Plan([KillPod(finished=True)] if runtime.active or not memory.finished else [])
    return _Planner(pod, runtime, memory, now, backoff_max).plan()


class _Planner:
    def __init__(self, pod: Object, runtime: RuntimePod, memory: Memory, now: float, backoff_max: float) -> None:
        self.pod, self.runtime, self.memory, self.now, self.backoff_max = pod, runtime, memory, now, backoff_max
        self.out = Plan()

    def plan(self) -> Plan:
        sandbox = self._usable_sandbox()
        if sandbox is None:
            self._without_sandbox()
        else:
            self._ephemeral()
            if self._initialised(sandbox):
                self._containers()
        return self.out

    def _usable_sandbox(self) -> Sandbox | None:
        ready = [s for s in self.runtime.sandboxes if s.ready]
        if len(ready) != 1:
            return None
        sandbox = ready[0]
        if sandbox.host_network != podspec.host_network(self.pod) or not (sandbox.ips or sandbox.host_network):
            return None
        return sandbox

    def _without_sandbox(self) -> None:
        attempt = max((s.attempt for s in self.runtime.sandboxes), default=-1) + 1
        if not self._has_work(attempt):
            self.out.actions.append(KillPod(finished=True))
            return
        if self.runtime.active:
            self.out.actions.append(KillPod(finished=False))
        retry_at = self.memory_retry("")
        if retry_at > self.now:
            self.out.wake(retry_at)
        else:
            self.out.actions.append(CreateSandbox(attempt))

    def memory_retry(self, name: str) -> float:
        return self.memory.retry_at.get(name, 0.0)

    def _has_work(self, attempt: int) -> bool:
        """Whether any container still has to run, now that the sandbox is gone."""
        if attempt == 0:
            return True
        restartable = podspec.restart_policy(self.pod) != "Never" or any(
            c.get("restartPolicyRules") or c.get("restartPolicy") in ("Always", "OnFailure") for c in podspec.containers(self.pod)
        )
        if not restartable and self.runtime.containers:
            return False
        return any(self._wants_to_run(c) for c in podspec.containers(self.pod))

    def _wants_to_run(self, container: Object) -> bool:
        run = self.runtime.latest(container["name"])
        return run is None or run.phase != "exited" or podspec.container_restarts(self.pod, container, run.exit_code)

    def _ephemeral(self) -> None:
        for container in podspec.ephemeral_containers(self.pod):
            if self.runtime.latest(container["name"]) is None:
                self._start(container, 0)

    # --- init containers ---

    def _initialised(self, sandbox: Sandbox) -> bool:
        """Bring the init phase on; whether the containers may run."""
        regular = {c["name"] for c in podspec.containers(self.pod)}
        if any(r.sandbox_id == sandbox.id and r.name in regular and r.phase in ("running", "exited") for r in self.runtime.containers):
            for container in podspec.init_containers(self.pod):
                if podspec.is_sidecar(container):
                    self._sidecar(container, sandbox)
            return True
        for container in podspec.init_containers(self.pod):
            done = self._sidecar(container, sandbox) if podspec.is_sidecar(container) else self._init(container, sandbox)
            if not done:
                return False
        return True

    def _init(self, container: Object, sandbox: Sandbox) -> bool:
        run = self._run_in(sandbox, container["name"])
        if run is None:
            self._start(container, self._next_attempt(container["name"]))
        elif run.phase == "exited":
            if run.exit_code == 0:
                return True
            if podspec.container_restarts(self.pod, container, run.exit_code):
                self._restart(container, run)
            else:
                self.out.actions.append(KillPod(finished=True))
        elif run.phase in ("unknown", "created"):
            self._replace(container, run)
        return False

    def _sidecar(self, container: Object, sandbox: Sandbox) -> bool:
        run = self._run_in(sandbox, container["name"])
        if run is None:
            self._start(container, self._next_attempt(container["name"]))
        elif run.phase == "exited":
            self._restart(container, run)
        elif run.phase in ("unknown", "created"):
            self._replace(container, run)
        elif not self._kill_if_wrong(container, run):
            return is_started(container, run, self.memory)
        return False

    def _run_in(self, sandbox: Sandbox, name: str) -> Container | None:
        return next((r for r in self.runtime.containers if r.name == name and r.sandbox_id == sandbox.id), None)

    # --- containers ---

    def _containers(self) -> None:
        ended = True
        for container in podspec.containers(self.pod):
            run = self.runtime.latest(container["name"])
            if run is None:
                self._start(container, 0)
            elif run.phase == "running":
                self._kill_if_wrong(container, run)
            elif run.phase in ("unknown", "created"):
                self._replace(container, run)
            elif podspec.container_restarts(self.pod, container, run.exit_code):
                self._restart(container, run)
            else:
                continue
            ended = False
        if ended:
            self.out.actions.append(KillPod(finished=True))

    def _kill_if_wrong(self, container: Object, run: Container) -> bool:
        """Kill a running container that failed a probe or whose definition changed, and start it anew if its policy allows; resize it if only that is wanted."""
        name = container["name"]
        if run.hash and run.hash != podspec.container_hash(container):
            reason, message, again = "changed", f"Container {name} definition changed", True
        elif run.id in self.memory.unhealthy:
            reason, message = "unhealthy", self.memory.unhealthy[run.id]
            again = podspec.container_restarts(self.pod, container, 1)
        elif self.memory.resize is None and (changed := resized(container, run, self.memory)):
            if not _resize_restarts(container, changed):
                self.out.actions.append(ResizeContainer(run))
                return False
            reason, message, again = "resize", f"Container {name} resize requires restart", True
        else:
            return False
        self.out.actions.append(KillContainer(run, reason, message + ", will be restarted" if again else message))
        if again:
            before = next((r for r in self.runtime.runs(name) if r.phase == "exited"), None)
            if before is None or not self._held_back(container, before):
                self._start(container, run.attempt + 1, self._lengthened(name, before.finished_at if before else 0.0))
        return True

    def _replace(self, container: Object, run: Container) -> None:
        """A run that never got to run, or that the runtime lost: away with it, and the next one."""
        self.out.actions.append(KillContainer(run, "unknown", f"Container {container['name']} is in unknown state"))
        if run.phase == "created":
            self.out.actions.append(RemoveContainer(run))
        if run.phase == "created" or podspec.container_restarts(self.pod, container, EXIT_CODE_LOST):
            self._start(container, run.attempt + 1)

    def _restart(self, container: Object, run: Container) -> None:
        if not self._held_back(container, run):
            self._start(container, run.attempt + 1, self._lengthened(container["name"], run.finished_at))

    def _start(self, container: Object, attempt: int, backoff: Backoff | None = None) -> None:
        retry_at = self.memory_retry(container["name"])
        if retry_at > self.now:
            self.out.wake(retry_at)
        else:
            self.out.actions.append(StartContainer(container["name"], attempt, backoff))

    def _next_attempt(self, name: str) -> int:
        run = self.runtime.latest(name)
        return run.attempt + 1 if run else 0

    # --- back-off ---

    def _held_back(self, container: Object, run: Container) -> bool:
        """Whether the back-off since the end of `run` still lasts; says so in `waiting`."""
        name = container["name"]
        backoff = self.memory.backoffs.get(name)
        if backoff is None or run.finished_at - backoff.since > 2 * self.backoff_max or self.now - run.finished_at >= backoff.seconds:
            return False
        text = f"back-off {_go_duration(backoff.seconds)} restarting failed container={name} pod={podspec.full_name(self.pod)}"
        self.out.waiting[name] = Waiting("CrashLoopBackOff", text)
        self.out.wake(run.finished_at + backoff.seconds)
        return True

    def _lengthened(self, name: str, finished_at: float) -> Backoff:
        backoff = self.memory.backoffs.get(name)
        if backoff is None or finished_at - backoff.since > 2 * self.backoff_max:
            return Backoff(min(BACKOFF_SECONDS_MIN, self.backoff_max), self.now)
        return Backoff(min(backoff.seconds * 2, self.backoff_max), self.now)


def resized(container: Object, run: Container, memory: Memory) -> set[str]:
    """Which of cpu and memory the spec wants otherwise than the running container has them."""
    applied = memory.applied.get(run.id)
    if applied is None or not run.running:
        return set()
    wanted = container.get("resources") or {}
    return {
        resource
        for resource in ("cpu", "memory")
        if any(_amount(wanted, what, resource) != _amount(applied, what, resource) for what in ("requests", "limits"))
    }


def _amount(resources: Object, what: str, resource: str) -> float | None:
    value = (resources.get(what) or {}).get(resource)
    return None if value is None else podspec.amount(value)


def _resize_restarts(container: Object, changed: set[str]) -> bool:
    """Whether the container's resizePolicy asks for a restart when one of `changed` does."""
    policies = {p["resourceName"]: p.get("restartPolicy") for p in container.get("resizePolicy") or ()}
    return any(policies.get(resource) == "RestartContainer" for resource in changed)


def is_started(container: Object, run: Container, memory: Memory) -> bool:
    """Whether a container runs and has passed its postStart hook and its startup probe."""
    return run.running and memory.hooked.get(run.id, True) and (not container.get("startupProbe") or memory.started.get(run.id, False))


def is_ready(container: Object, run: Container, memory: Memory) -> bool:
    return is_started(container, run, memory) and (not container.get("readinessProbe") or memory.ready.get(run.id, False))


def _go_duration(seconds: float) -> str:
    """How Go prints a duration of whole seconds: 10s, 1m20s, 5m0s."""
    whole = int(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
