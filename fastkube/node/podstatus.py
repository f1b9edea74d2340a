"""A pod's status: a pure function of its spec, the runtime's state, the agent's memory, the status last written and the clock.

Laws: what did not change keeps its times; a phase that is Succeeded or Failed never changes again; `ready` of a container implies that it
runs and has started; a pod with anything running is not over; words (reasons, messages) are upstream's, because people and programs match on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastkube.node import podspec
from fastkube.node.model import Container, Memory, Object, RuntimePod
from fastkube.node.podstate import EXIT_CODE_LOST, is_ready, is_started, resized
from fastkube.runtime import clock

TERMINAL = ("Succeeded", "Failed")
RESIZE_PENDING, RESIZE_IN_PROGRESS = "PodResizePending", "PodResizeInProgress"


def status(pod: Object, runtime: RuntimePod, memory: Memory, now: float, host_ips: Sequence[str]) -> Object:
    """The PodStatus to write. `pod["status"]` is the last one known; conditions of other owners in it are kept."""
    previous: Object = pod.get("status") or {}
    init = [_container(pod, c, runtime, memory, previous, "initContainerStatuses") for c in podspec.init_containers(pod)]
    regular = [_container(pod, c, runtime, memory, previous, "containerStatuses") for c in podspec.containers(pod)]
    ephemeral = [_container(pod, c, runtime, memory, previous, "ephemeralContainerStatuses") for c in podspec.ephemeral_containers(pod)]
    ended = memory.finished or (memory.termination is not None and not runtime.active)
    phase = _phase(pod, init, regular, ended)
    termination = memory.termination
    if previous.get("phase") in TERMINAL:
        phase = previous["phase"]
    elif termination and termination.phase and not runtime.active:
        phase = termination.phase
    if phase in TERMINAL and previous.get("phase") not in TERMINAL and any(r.running for r in runtime.containers):
        phase = "Running"  # a pod is over only when nothing of it runs any more
    out: Object = {"phase": phase}
    if pod["metadata"].get("generation"):
        out["observedGeneration"] = pod["metadata"]["generation"]
    out["conditions"] = _conditions(pod, runtime, memory, phase, init, regular, previous, now)
    for key in ("reason", "message"):
        value = getattr(termination, key) if termination and termination.reason else previous.get(key)
        if value:
            out[key] = value
    out |= (_last_addresses(previous) if ended or phase in TERMINAL else {}) | addresses(runtime, host_ips)
    out["startTime"] = previous.get("startTime") or clock.rfc3339(memory.start_time or now)
    if init:
        out["initContainerStatuses"] = init
    out["containerStatuses"] = regular
    if ephemeral:
        out["ephemeralContainerStatuses"] = ephemeral
    out["qosClass"] = podspec.qos_class(pod)
    for key in ("nominatedNodeName", "resourceClaimStatuses"):
        if key in previous:
            out[key] = previous[key]
    return out


def rejected(pod: Object, reason: str, message: str, now: float) -> Object:
    """The status of a pod that this node does not take."""
    previous: Object = pod.get("status") or {}
    out = {"phase": "Failed", "reason": reason, "message": message, "startTime": clock.rfc3339(now), "qosClass": podspec.qos_class(pod)}
    if pod["metadata"].get("generation"):
        out["observedGeneration"] = pod["metadata"]["generation"]
    if previous.get("conditions"):
        out["conditions"] = previous["conditions"]
    return out


# --- addresses ---


def addresses(runtime: RuntimePod, host_ips: Sequence[str]) -> Object:
    """hostIP, hostIPs, podIP and podIPs as the runtime has them now."""
    out: Object = {}
    if host_ips:
        out["hostIP"] = host_ips[0]
        out["hostIPs"] = [{"ip": ip} for ip in host_ips]
    sandbox = runtime.sandbox
    ips = () if sandbox is None else host_ips if sandbox.host_network else sandbox.ips
    if ips:
        out["podIP"] = ips[0]
        out["podIPs"] = [{"ip": ip} for ip in ips]
    return out


def _last_addresses(previous: Object) -> Object:
    """A pod that is over keeps the addresses it had."""
    return {key: previous[key] for key in ("podIP", "podIPs") if previous.get(key)}


# --- containers ---


def _container(pod: Object, container: Object, runtime: RuntimePod, memory: Memory, previous: Object, where: str) -> Object:
    name = container["name"]
    old: Object = next((s for s in previous.get(where) or () if s["name"] == name), {})
    runs = runtime.runs(name)
    run = runs[0] if runs else None
    out: Object = {"name": name, "state": {}, "lastState": {}, "ready": False, "restartCount": 0, "image": container.get("image", ""), "imageID": ""}
    if run is None:
        _never_ran(pod, container, memory, old, out, where)
    else:
        _ran(container, run, runs, memory, out)
        _keep_message(old, out)
    if where == "initContainerStatuses" and not podspec.is_sidecar(container):
        out["ready"] = (out["state"].get("terminated") or {}).get("exitCode") == 0
        out["started"] = False
    if run is not None and run.running:
        resources = memory.applied.get(run.id, container.get("resources")) or {}
        if resources:
            out["resources"] = resources
        if resources.get("requests"):
            out["allocatedResources"] = resources["requests"]
    mounts = [_mount_status(m) for m in container.get("volumeMounts") or ()]
    if mounts:
        out["volumeMounts"] = mounts
    return out


def _mount_status(mount: Object) -> Object:
    out = {"name": mount["name"], "mountPath": mount["mountPath"]}
    if mount.get("readOnly"):
        out |= {"readOnly": True, "recursiveReadOnly": "Disabled"}
    return out


def _never_ran(pod: Object, container: Object, memory: Memory, old: Object, out: Object, where: str) -> None:
    waiting = memory.waiting.get(container["name"])
    out["restartCount"] = old.get("restartCount", 0)
    out["started"] = False
    state = old.get("state") or {}
    if state.get("terminated"):  # it ran once and the runtime has forgotten: its end stands
        out["state"] = {"terminated": state["terminated"]}
        for key in ("lastState", "imageID", "containerID", "image"):
            if key in old:
                out[key] = old[key]
        return
    if state.get("running"):
        lost = {
            "exitCode": EXIT_CODE_LOST, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None,
            "message": "The container could not be located when the pod was terminated" if memory.termination or memory.finished
            else "The container could not be located when the pod was deleted.  The container used to be Running",
        }  # fmt: skip
        if memory.termination or memory.finished:
            out["state"] = {"terminated": lost}
            return
        out["lastState"] = {"terminated": lost}
        out["restartCount"] += 1
    elif old.get("lastState"):
        out["lastState"] = old["lastState"]
    if waiting is not None:
        out["state"] = {"waiting": _waiting(waiting.reason, waiting.message)}
    else:
        initialising = bool(podspec.init_containers(pod)) and where != "ephemeralContainerStatuses"
        out["state"] = {"waiting": {"reason": "PodInitializing" if initialising else "ContainerCreating"}}


def _ran(container: Object, run: Container, runs: list[Container], memory: Memory, out: Object) -> None:
    out["containerID"] = f"containerd://{run.id}"
    out["image"] = run.image or out["image"]
    out["imageID"] = run.image_id
    out["restartCount"] = run.attempt
    out["started"] = is_started(container, run, memory)
    out["ready"] = is_ready(container, run, memory)
    before = next((r for r in runs[1:] if r.dead), None)
    if run.running:
        out["state"] = {"running": {"startedAt": _time(run.started_at)}}
    elif run.phase == "created":
        waiting = memory.waiting.get(run.name)
        out["state"] = {"waiting": _waiting(waiting.reason, waiting.message) if waiting else {"reason": "ContainerCreating"}}
    else:
        waiting = memory.waiting.get(run.name)
        if waiting is not None:
            out["state"] = {"waiting": _waiting(waiting.reason, waiting.message)}
            before = run
        else:
            out["state"] = {"terminated": _terminated(run)}
    if before is not None:
        out["lastState"] = {"terminated": _terminated(before)}


def _keep_message(old: Object, out: Object) -> None:
    """The file with a termination message goes with the pod's volumes: what was written to the API once is kept."""
    for key in ("state", "lastState"):
        new, before = (out.get(key) or {}).get("terminated"), (old.get(key) or {}).get("terminated")
        if new and before and before.get("containerID") == new.get("containerID") and "message" not in new and before.get("message"):
            new["message"] = before["message"]


def _waiting(reason: str, message: str) -> Object:
    return {"reason": reason, "message": message} if message else {"reason": reason}


def _terminated(run: Container) -> Object:
    if run.phase == "unknown":
        out: Object = {"exitCode": EXIT_CODE_LOST, "reason": "ContainerStatusUnknown"}
    else:
        out = {"exitCode": run.exit_code, "reason": run.reason or ("Completed" if run.exit_code == 0 else "Error")}
    if run.message:
        out["message"] = run.message
    out |= {"startedAt": _time(run.started_at), "finishedAt": _time(run.finished_at), "containerID": f"containerd://{run.id}"}
    return out


def _time(seconds: float) -> str | None:
    return clock.rfc3339(seconds) if seconds > 0 else None


# --- phase ---


def _phase(pod: Object, init: list[Object], regular: list[Object], ended: bool) -> str:
    by_name = {c["name"]: c for c in podspec.all_containers(pod)}
    pending_init = failed_init = False
    for s in init:
        spec, state = by_name[s["name"]], s["state"]
        last = (s.get("lastState") or {}).get("terminated")
        if podspec.is_sidecar(spec):
            pending_init = pending_init or not (s.get("started") or state.get("terminated") or last)
        elif state.get("terminated"):
            code = state["terminated"]["exitCode"]
            failed_init = failed_init or (code != 0 and not podspec.container_restarts(pod, spec, code))
            pending_init = pending_init or code != 0
        else:
            pending_init = True
    running = sum(1 for s in regular if s["state"].get("running"))
    waiting = sum(1 for s in regular if s["state"].get("waiting") and not (s.get("lastState") or {}).get("terminated"))
    stopped = [_end(s) for s in regular]
    ends = [e for e in stopped if e is not None]
    if failed_init:
        return "Failed"
    if ended and ends and not running:
        return "Succeeded" if len(ends) == len(regular) and all(e["exitCode"] == 0 for e in ends) else "Failed"
    ran = any(s["state"].get("running") or _end(s) for s in regular)
    if (pending_init and not ran) or waiting:
        return "Pending"
    if running:
        return "Running"
    if len(ends) < len(regular):
        return "Pending"
    if any(podspec.container_restarts(pod, by_name[s["name"]], e["exitCode"]) for s, e in zip(regular, ends, strict=True)):
        return "Running"
    return "Succeeded" if all(e["exitCode"] == 0 for e in ends) else "Failed"


def _end(container_status: Object) -> Object | None:
    """How a container that does not run ended; None when it runs or never ran."""
    state = container_status["state"]
    if state.get("terminated"):
        return state["terminated"]
    return (container_status.get("lastState") or {}).get("terminated") if state.get("waiting") else None


# --- conditions ---


def _conditions(
    pod: Object, runtime: RuntimePod, memory: Memory, phase: str, init: list[Object], regular: list[Object], previous: Object, now: float
) -> list[Object]:
    sidecars = {c["name"] for c in podspec.init_containers(pod) if podspec.is_sidecar(c)}
    ran = any(s["state"].get("running") or _end(s) for s in regular)
    incomplete = [s["name"] for s in init if not (s["started"] or ran if s["name"] in sidecars else s["ready"])] if not ran else []
    unready = [s["name"] for s in [*[s for s in init if s["name"] in sidecars], *regular] if not s["ready"]]
    sandbox = runtime.sandbox
    has_network = sandbox is not None and (sandbox.host_network or bool(sandbox.ips))

    if phase == "Succeeded":
        initialised, contained = ("True", "PodCompleted", ""), ("False", "PodCompleted", "")
    elif phase == "Failed":
        initialised = ("True", "", "") if not incomplete else ("False", "ContainersNotInitialized", _names("incomplete", incomplete))
        contained = ("False", "PodFailed", "")
    else:
        initialised = ("True", "", "") if not incomplete else ("False", "ContainersNotInitialized", _names("incomplete", incomplete))
        contained = ("True", "", "") if not unready else ("False", "ContainersNotReady", _names("unready", unready))
    known = {c["type"]: c for c in previous.get("conditions") or ()}
    gates = [g["conditionType"] for g in pod["spec"].get("readinessGates") or ()]
    closed = [g for g in gates if known.get(g, {}).get("status") != "True"]
    ready = contained
    if contained[0] == "True" and closed:
        missing = [f'corresponding condition of pod readiness gate "{g}" does not exist.' for g in closed if g not in known]
        false = [f'the status of pod readiness gate "{g}" is not "True", but {known[g]["status"]}' for g in closed if g in known]
        ready = ("False", "ReadinessGatesNotReady", ", ".join([*missing, *false]))

    ours = {
        "PodReadyToStartContainers": ("True" if has_network else "False", "", ""),
        "Initialized": initialised,
        "Ready": ready,
        "ContainersReady": contained,
        "PodScheduled": ("True", "", ""),
    }
    generation = pod["metadata"].get("generation")
    out = [_condition(kind, value, known.get(kind), generation, now) for kind, value in ours.items()]
    if memory.termination and memory.termination.condition:
        extra = memory.termination.condition
        out.insert(0, _condition(extra["type"], (extra["status"], extra["reason"], extra["message"]), known.get(extra["type"]), generation, now))
    for kind, value in _resize(pod, runtime, memory).items():
        out.append(_condition(kind, value, known.get(kind), generation, now))
    present = {c["type"] for c in out} | {RESIZE_PENDING, RESIZE_IN_PROGRESS}
    return out + [c for kind, c in known.items() if kind not in present]


def _resize(pod: Object, runtime: RuntimePod, memory: Memory) -> dict[str, tuple[str, str, str]]:
    """The conditions of a resize that waits or is being carried out."""
    if memory.resize is not None:
        return {RESIZE_PENDING: ("True", *memory.resize)}
    running = {r.name: r for r in runtime.containers if r.running}
    if any(resized(c, running[c["name"]], memory) for c in podspec.all_containers(pod) if c["name"] in running):
        return {RESIZE_IN_PROGRESS: ("True", "", "")}
    return {}


def _names(what: str, names: list[str]) -> str:
    return f"containers with {what} status: [{' '.join(names)}]"


def _condition(kind: str, value: tuple[str, str, str], old: Object | None, generation: int | None, now: float) -> Object:
    state, reason, message = value
    out: dict[str, Any] = {"type": kind, "status": state}
    if generation:
        out["observedGeneration"] = generation
    out["lastProbeTime"] = None
    out["lastTransitionTime"] = old["lastTransitionTime"] if old and old.get("status") == state and old.get("lastTransitionTime") else clock.rfc3339(now)
    if reason:
        out["reason"] = reason
    if message:
        out["message"] = message
    return out
