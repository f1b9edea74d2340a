"""What the pure cores of the node agent speak of: pods as the runtime has them, and what the agent alone remembers of a pod.

Times are seconds since the epoch as floats; 0.0 means not yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Object = dict[str, Any]

LABEL_POD_NAME = "io.kubernetes.pod.name"
LABEL_POD_NAMESPACE = "io.kubernetes.pod.namespace"
LABEL_POD_UID = "io.kubernetes.pod.uid"
LABEL_CONTAINER_NAME = "io.kubernetes.container.name"
ANNOTATION_HASH = "io.kubernetes.container.hash"
ANNOTATION_RESTART_COUNT = "io.kubernetes.container.restartCount"
ANNOTATION_TERMINATION_PATH = "io.kubernetes.container.terminationMessagePath"
ANNOTATION_TERMINATION_POLICY = "io.kubernetes.container.terminationMessagePolicy"
ANNOTATION_PRE_STOP = "io.kubernetes.container.preStopHandler"
ANNOTATION_GRACE = "io.kubernetes.pod.terminationGracePeriod"
ANNOTATION_PORTS = "io.kubernetes.container.ports"

ContainerPhase = Literal["created", "running", "exited", "unknown"]


@dataclass(slots=True)
class Container:
    """One run of a container, dead or alive, as the runtime tells it."""

    id: str
    name: str
    sandbox_id: str
    attempt: int = 0
    phase: ContainerPhase = "running"
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    image: str = ""
    image_id: str = ""
    hash: str = ""
    log_path: str = ""
    resources: Object | None = None
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.phase == "running"

    @property
    def dead(self) -> bool:
        return self.phase in ("exited", "unknown")


@dataclass(slots=True)
class Sandbox:
    id: str
    attempt: int = 0
    ready: bool = True
    created_at: float = 0.0
    ips: tuple[str, ...] = ()
    host_network: bool = False
    netns: str = ""


@dataclass(slots=True)
class RuntimePod:
    """A pod as the runtime has it: sandboxes newest first, containers newest first."""

    uid: str
    name: str = ""
    namespace: str = ""
    sandboxes: list[Sandbox] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)

    @property
    def sandbox(self) -> Sandbox | None:
        """The newest one that is ready."""
        return next((s for s in self.sandboxes if s.ready), None)

    def latest(self, name: str) -> Container | None:
        """The newest run of the container `name`."""
        return next((c for c in self.containers if c.name == name), None)

    def runs(self, name: str) -> list[Container]:
        return [c for c in self.containers if c.name == name]

    def running(self) -> Iterator[Container]:
        return (c for c in self.containers if c.phase in ("running", "created"))

    @property
    def empty(self) -> bool:
        return not self.sandboxes and not self.containers

    @property
    def active(self) -> bool:
        """Whether anything of it runs."""
        return any(s.ready for s in self.sandboxes) or any(c.running for c in self.containers)


@dataclass(slots=True)
class Backoff:
    """A restart back-off as client-go's flowcontrol.Backoff counts it."""

    seconds: float
    since: float  # when it was last lengthened


@dataclass(slots=True)
class Waiting:
    """Why a container does not run yet: what stands in state.waiting."""

    reason: str
    message: str = ""


@dataclass(slots=True)
class Termination:
    """The pod is to end. `grace_seconds` counts from the moment it was asked for; `reason` and `message` go into the status when the agent decided it
    (deadline, eviction, rejection); `phase` is then forced."""

    grace_seconds: int
    reason: str = ""
    message: str = ""
    phase: str = ""
    condition: Object | None = None


@dataclass(slots=True)
class Memory:
    """What the agent knows of a pod beside spec and runtime. Lost at its restart: what matters is learnt again.

    Probe results are per container id: `ready` the readiness, `started` the startup probe's, `unhealthy` the message of a liveness or
    startup probe that gave up (the container must go).
    """

    ready: dict[str, bool] = field(default_factory=dict)
    started: dict[str, bool] = field(default_factory=dict)
    unhealthy: dict[str, str] = field(default_factory=dict)
    backoffs: dict[str, Backoff] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    retry_at: dict[str, float] = field(default_factory=dict)  # container name ("": the sandbox) -> not tried again before
    hooked: dict[str, bool] = field(default_factory=dict)  # container id -> whether postStart is done (absent: there is none)
    termination: Termination | None = None
    rejected: bool = False  # by admission: nothing of it was ever started
    applied: dict[str, Object] = field(default_factory=dict)  # container id -> the resources it runs with
    resize: tuple[str, str] | None = None  # (reason, message) why a resize waits: Infeasible, Deferred
    finished: bool = False  # everything of it has ended for good
    start_time: float = 0.0
