"""Tables of the core group and of events."""

from __future__ import annotations

from typing import Any

from fastkube.api.tables.model import (
    NONE,
    UNKNOWN,
    UNSET,
    Cells,
    Object,
    Printer,
    age,
    columns,
    condition,
    containers,
    get,
    joined,
    labels,
    name_of,
    since,
    true,
)

_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
_CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
_ROLE_PREFIX = "node-role.kubernetes.io/"


def _restartable(container: Object | None) -> bool:
    return (container or {}).get("restartPolicy") == "Always"


def _ended(state: Object, prefix: str = "") -> str:
    if state.get("reason"):
        return f"{prefix}{state['reason']}"
    return f"{prefix}Signal:{state['signal']}" if state.get("signal") else f"{prefix}ExitCode:{state.get('exitCode', 0)}"


class _Restarts:
    """How often, and when last."""

    def __init__(self) -> None:
        self.count, self.last = 0, ""

    def add(self, status: Object) -> None:
        self.count += status.get("restartCount", 0)
        self.last = max(self.last, get(status, "lastState", "terminated", "finishedAt", default=""))

    def __str__(self) -> str:
        return f"{self.count} ({since(self.last)} ago)" if self.count and self.last else str(self.count)


def pod_state(pod: Object) -> tuple[str, str, str]:
    """-> (READY, STATUS, RESTARTS): what is most worth knowing of the pod, from its phase, containers and deletion."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    phase = status.get("phase", "")
    reason = status.get("reason") or phase
    if (condition(pod, "PodScheduled") or {}).get("reason") == "SchedulingGated":
        reason = "SchedulingGated"
    init = {c.get("name"): c for c in spec.get("initContainers") or ()}
    total = len(spec.get("containers") or ()) + sum(map(_restartable, init.values()))
    ready, initializing = 0, False
    restarts, sidecar_restarts = _Restarts(), _Restarts()
    for i, container in enumerate(status.get("initContainerStatuses") or ()):
        sidecar = _restartable(init.get(container.get("name")))
        restarts.add(container)
        if sidecar:
            sidecar_restarts.add(container)
        ended, waiting = get(container, "state", "terminated"), get(container, "state", "waiting", "reason", default="")
        if ended is not None and ended.get("exitCode", 0) == 0:
            continue
        if sidecar and container.get("started"):
            ready += bool(container.get("ready"))
            continue
        if ended is not None:
            reason = _ended(ended, "Init:")
        elif waiting and waiting != "PodInitializing":
            reason = f"Init:{waiting}"
        else:
            reason = f"Init:{i}/{len(init)}"
        initializing = True
        break
    if not initializing or true(pod, "Initialized"):
        restarts = sidecar_restarts
        running = False
        for container in reversed(status.get("containerStatuses") or ()):
            restarts.add(container)
            ended, waiting = get(container, "state", "terminated"), get(container, "state", "waiting", "reason", default="")
            if waiting:
                reason = waiting
            elif ended is not None:
                reason = _ended(ended)
            elif container.get("ready") and get(container, "state", "running") is not None:
                running = True
                ready += 1
        if reason == "Completed" and running:
            reason = "Running" if true(pod, "Ready") else "NotReady"
    if get(pod, "metadata", "deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            reason = "Unknown"
        elif phase not in ("Succeeded", "Failed"):
            reason = "Terminating"
    return f"{ready}/{total}", reason, str(restarts)


def _pod(pod: Object) -> Cells:
    gates = get(pod, "spec", "readinessGates", default=())
    open_gates = sum(true(pod, g.get("conditionType", "")) for g in gates)
    return [
        name_of(pod), *pod_state(pod), age(pod), get(pod, "status", "podIPs", default=[{}])[0].get("ip") or NONE, get(pod, "spec", "nodeName") or NONE,
        get(pod, "status", "nominatedNodeName") or NONE, f"{open_gates}/{len(gates)}" if gates else NONE,
    ]  # fmt: skip


def _pod_conditions(pod: Object) -> list[Object] | None:
    phase = get(pod, "status", "phase")
    message = {"Succeeded": "The pod has completed successfully.", "Failed": "The pod failed."}.get(phase)
    return [{"type": "Completed", "status": "True", "reason": phase, "message": message}] if message else None


def load_balancer(status: Object) -> str:
    return ",".join(sorted({i.get("ip") or i.get("hostname") or "" for i in get(status, "loadBalancer", "ingress", default=())} - {""}))


def _external_ip(service: Object) -> str:
    spec = service.get("spec") or {}
    kind, external = spec.get("type", ""), spec.get("externalIPs") or []
    if kind in ("ClusterIP", "NodePort"):
        return joined(external)
    if kind == "LoadBalancer":
        balanced = load_balancer(service.get("status") or {})
        return joined([*([balanced] if balanced else []), *external], "<pending>")
    return spec.get("externalName", "") if kind == "ExternalName" else UNKNOWN


def _service_port(port: Object) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port.get('port', 0)}{node}/{port.get('protocol', '')}"


def _service(service: Object) -> Cells:
    spec = service.get("spec") or {}
    return [
        name_of(service), spec.get("type", ""), (spec.get("clusterIPs") or [NONE])[0], _external_ip(service),
        joined(map(_service_port, spec.get("ports") or ())), age(service), labels(spec.get("selector")),
    ]  # fmt: skip


def _node(node: Object) -> Cells:
    ready = condition(node, "Ready")
    states = ["Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"]
    if get(node, "spec", "unschedulable"):
        states.append("SchedulingDisabled")
    of = get(node, "metadata", "labels", default={})
    roles = {k.removeprefix(_ROLE_PREFIX) for k in of if k.startswith(_ROLE_PREFIX)} | {of.get("kubernetes.io/role", "")}
    info = get(node, "status", "nodeInfo", default={})

    def address(kind: str) -> str:
        return next((a.get("address", "") for a in get(node, "status", "addresses", default=()) if a.get("type") == kind), NONE)

    return [
        name_of(node), ",".join(states), joined(sorted(roles - {""})), age(node), info.get("kubeletVersion", ""), address("InternalIP"), address("ExternalIP"),
        info.get("osImage") or UNKNOWN, info.get("kernelVersion") or UNKNOWN, info.get("containerRuntimeVersion") or UNKNOWN,
    ]  # fmt: skip


def _event(event: Object) -> Cells:
    about = event.get("involvedObject") or event.get("regarding") or {}
    source = event.get("source") or event.get("deprecatedSource") or {}
    series = event.get("series")
    first = since(event.get("firstTimestamp") or event.get("deprecatedFirstTimestamp") or event.get("eventTime"))
    last_time = event.get("lastTimestamp") or event.get("deprecatedLastTimestamp")
    last = since(series.get("lastObservedTime")) if series else since(last_time) if last_time else first
    count = series.get("count", 0) if series else (event.get("count") or event.get("deprecatedCount") or 1)
    component = source.get("component") or event.get("reportingComponent") or event.get("reportingController") or ""
    instance = source.get("host") or event.get("reportingInstance") or ""
    kind, name = about.get("kind", "").lower(), about.get("name", "")
    return [
        last, event.get("type", ""), event.get("reason", ""), f"{kind}/{name}" if name else kind, about.get("fieldPath", ""),
        f"{component}, {instance}" if instance else component, (event.get("message") or event.get("note") or "").strip(), first, count, name_of(event),
    ]  # fmt: skip


def _endpoints(endpoints: Object) -> Cells:
    listed: list[str] = []
    for subset in endpoints.get("subsets") or ():
        ips = [a.get("ip", "") for a in subset.get("addresses") or ()]
        ports = subset.get("ports") or ()
        listed += [f"[{ip}]:{p.get('port', 0)}" if ":" in ip else f"{ip}:{p.get('port', 0)}" for p in ports for ip in ips] if ports else ips
    text = ",".join(listed[:3])
    if not endpoints.get("subsets"):
        text = NONE
    elif len(listed) > 3:
        text += f" + {len(listed) - 3} more..."
    return [name_of(endpoints), text, age(endpoints)]


def _modes(of: Any) -> str:
    return ",".join(short for mode, short in _MODES.items() if mode in (of or ()))


def _class(obj: Object) -> str:
    annotations = get(obj, "metadata", "annotations", default={})
    return annotations[_CLASS_ANNOTATION] if _CLASS_ANNOTATION in annotations else get(obj, "spec", "storageClassName", default="")


def _phase(obj: Object) -> str:
    return "Terminating" if get(obj, "metadata", "deletionTimestamp") else get(obj, "status", "phase", default="")


def _volume(pv: Object) -> Cells:
    spec = pv.get("spec") or {}
    claim = spec.get("claimRef")
    return [
        name_of(pv), get(spec, "capacity", "storage", default="0"), _modes(spec.get("accessModes")), spec.get("persistentVolumeReclaimPolicy", ""), _phase(pv),
        f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "", _class(pv), spec.get("volumeAttributesClassName") or UNSET,
        get(pv, "status", "reason", default=""), age(pv), spec.get("volumeMode") or UNSET,
    ]  # fmt: skip


def _claim(pvc: Object) -> Cells:
    spec, status = pvc.get("spec") or {}, pvc.get("status") or {}
    bound = spec.get("volumeName", "")
    return [
        name_of(pvc), _phase(pvc), bound, get(status, "capacity", "storage", default="0") if bound else "", _modes(status.get("accessModes")) if bound else "",
        _class(pvc), spec.get("volumeAttributesClassName") or UNSET, age(pvc), spec.get("volumeMode") or UNSET,
    ]  # fmt: skip


def _quota(quota: Object) -> Cells:
    hard, used = get(quota, "status", "hard", default={}), get(quota, "status", "used", default={})
    texts = [(k.startswith("limits."), f"{k}: {used.get(k, '0')}/{v}") for k, v in sorted(hard.items())]
    return [name_of(quota), ", ".join(t for limit, t in texts if not limit), ", ".join(t for limit, t in texts if limit), age(quota)]


def _component(obj: Object) -> Cells:
    healthy: Object | None = next((c for c in obj.get("conditions") or () if c.get("type") == "Healthy"), None)
    state = "Unknown" if healthy is None else "Healthy" if healthy.get("status") == "True" else "Unhealthy"
    return [name_of(obj), state, (healthy or {}).get("message", ""), (healthy or {}).get("error", "")]


def _controller(rc: Object) -> Cells:
    spec, status = rc.get("spec") or {}, rc.get("status") or {}
    counts = [spec.get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [name_of(rc), *counts, age(rc), *containers(get(spec, "template", "spec")), labels(spec.get("selector"))]


def _template(obj: Object) -> Cells:
    return [name_of(obj), *containers(get(obj, "template", "spec")), labels(get(obj, "template", "metadata", "labels"))]


_WORKLOAD = "+Containers|+Images|+Selector"
_EVENT = "Last Seen|Type|Reason|Object|+Subobject|+Source|Message|+First Seen|+Count|+Name"

PRINTERS = {
    ("", "Pod"): Printer(columns("Name|Ready|Status|Restarts|Age|+IP|+Node|+Nominated Node|+Readiness Gates"), _pod, _pod_conditions),
    ("", "Service"): Printer(columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age|+Selector"), _service),
    ("", "Node"): Printer(columns("Name|Status|Roles|Age|Version|+Internal-IP|+External-IP|+OS-Image|+Kernel-Version|+Container-Runtime"), _node),
    ("", "Event"): Printer(columns(_EVENT), _event),
    ("events.k8s.io", "Event"): Printer(columns(_EVENT), _event),
    ("", "Namespace"): Printer(columns("Name|Status|Age"), lambda o: [name_of(o), get(o, "status", "phase", default=""), age(o)]),
    ("", "ConfigMap"): Printer(columns("Name|Data|Age"), lambda o: [name_of(o), len(o.get("data") or ()) + len(o.get("binaryData") or ()), age(o)]),
    ("", "Secret"): Printer(columns("Name|Type|Data|Age"), lambda o: [name_of(o), o.get("type", ""), len(o.get("data") or ()), age(o)]),
    ("", "ServiceAccount"): Printer(columns("Name|Age"), lambda o: [name_of(o), age(o)]),
    ("", "Endpoints"): Printer(columns("Name|Endpoints|Age"), _endpoints),
    ("", "PersistentVolume"): Printer(
        columns("Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|+VolumeMode"), _volume
    ),
    ("", "PersistentVolumeClaim"): Printer(columns("Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|+VolumeMode"), _claim),
    ("", "ResourceQuota"): Printer(columns("Name|Request|Limit|Age"), _quota),
    ("", "ReplicationController"): Printer(columns(f"Name|Desired:integer|Current:integer|Ready:integer|Age|{_WORKLOAD}"), _controller),
    ("", "PodTemplate"): Printer(columns("Name|Containers|Images|Pod Labels"), _template),
    ("", "ComponentStatus"): Printer(columns("Name|Status|Message|Error"), _component),
}
