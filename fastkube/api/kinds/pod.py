"""The rules of Pod (upstream: pkg/registry/core/pod/strategy.go, pkg/apis/core/validation)."""

from __future__ import annotations

from fastkube.api import formats, internal, quantity
from fastkube.api.errors import FieldError, forbidden_field, invalid_value
from fastkube.api.kinds import pod_containers, pod_defaults, pod_spec, pod_warnings
from fastkube.api.kinds.base import Kind, Object, null_when_empty
from fastkube.api.kinds.common import INT32_MAX, Errors, rule

_UPDATABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
    "`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
MIRROR = "kubernetes.io/config.mirror"


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort: by the CPU and memory that containers (or the pod as a whole) ask for and are limited to."""
    whole = spec.get("resources") or {}
    if whole.get("requests") or whole.get("limits"):
        return _qos([whole])
    return _qos([c.get("resources") or {} for key in ("containers", "initContainers") for c in spec.get(key) or ()])


def _qos(resources: list[Object]) -> str:
    requests: dict[str, int] = {}
    limits: dict[str, int] = {}
    guaranteed = True
    for r in resources:
        own = r.get("limits") or {}
        for name, amount in (r.get("requests") or {}).items():
            if name in ("cpu", "memory") and (n := quantity.nanos(amount)) > 0:
                requests[name] = requests.get(name, 0) + n
        found = 0
        for name, amount in own.items():
            if name in ("cpu", "memory") and (n := quantity.nanos(amount)) > 0:
                limits[name] = limits.get(name, 0) + n
                found += 1
        guaranteed = guaranteed and found == 2
    if not requests and not limits:
        return "BestEffort"
    if guaranteed and len(requests) == len(limits) and all(limits.get(name) == n for name, n in requests.items()):
        return "Guaranteed"
    return "Burstable"


class Pod(Kind):
    kind = "Pod"
    status_metadata = ("labels", "annotations", "finalizers")  # old kubelets sent broken ownerReferences
    grace_seconds_default = 30
    field_labels = (
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName",
    )  # fmt: skip

    def default(self, obj: Object) -> None:
        pod_defaults.pod(obj)
        status = obj.get("status")
        if status:
            _pair_ips(status)

    def prepare_create(self, obj: Object) -> None:
        obj["metadata"]["generation"] = 1
        spec = obj["spec"]
        if spec.get("terminationGracePeriodSeconds", 0) < 0:
            spec["terminationGracePeriodSeconds"] = 1
        obj["status"] = {"phase": "Pending", "qosClass": qos_class(spec)}
        for volume in spec.get("volumes") or ():
            if "projected" in volume:
                null_when_empty(volume["projected"], "sources")
        if spec.get("schedulingGates"):
            obj["status"]["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                    "lastTransitionTime": None,
                }
            ]
        for term in _affinity_terms(spec):
            _match_labels(term, obj["metadata"].get("labels") or {})
        for constraint in spec.get("topologySpreadConstraints") or ():
            _spread_labels(constraint, obj["metadata"].get("labels") or {})

    def prepare_update(self, obj: Object, old: Object) -> None:
        obj["status"] = old.get("status") or {}
        if "ephemeralContainers" in old.get("spec", {}):
            obj["spec"]["ephemeralContainers"] = old["spec"]["ephemeralContainers"]
        else:
            obj["spec"].pop("ephemeralContainers", None)
        self._count(obj, old)

    def _count(self, obj: Object, old: Object) -> None:
        generation = old["metadata"].get("generation", 0)
        if obj["spec"] != old["spec"]:
            generation += 1
        if generation:
            obj["metadata"]["generation"] = generation

    def prepare_status(self, obj: Object, old: Object) -> None:
        super().prepare_status(obj, old)
        obj.setdefault("status", {})["qosClass"] = (old.get("status") or {}).get("qosClass") or qos_class(obj["spec"])

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = _metadata_and_spec(obj)
        spec = obj["spec"]
        if spec.get("ephemeralContainers"):
            errors.append(forbidden_field("spec.ephemeralContainers", "cannot be set on create"))
        if spec.get("nodeName") and spec.get("schedulingGates"):
            errors.append(forbidden_field("spec.nodeName", "cannot be set until all schedulingGates have been cleared"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = _metadata_and_spec(obj) + _annotation_updates(obj, old)
        new_spec, old_spec = obj["spec"], old["spec"]
        for key in ("containers", "initContainers"):
            if len(new_spec.get(key) or ()) != len(old_spec.get(key) or ()):
                return [*errors, forbidden_field(f"spec.{key}", "pod updates may not add or remove containers")]
        bad, stop = _deadline(new_spec.get("activeDeadlineSeconds"), old_spec.get("activeDeadlineSeconds"))
        errors += bad
        if stop:
            return errors
        errors += _added_tolerations(new_spec.get("tolerations") or [], old_spec.get("tolerations") or [])
        errors += _removed_gates(new_spec.get("schedulingGates") or [], old_spec.get("schedulingGates") or [])
        if new_spec == old_spec:
            return errors
        munged, more = _munged(new_spec, old_spec)
        errors += more
        if munged != old_spec:
            errors.append(forbidden_field("spec", _UPDATABLE + "\n" + internal.difference("core.v1.PodSpec", munged, old_spec)))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        errors = _annotation_updates(obj, old)
        status, before = obj.get("status") or {}, old.get("status") or {}
        for i, condition in enumerate(status.get("conditions") or ()):
            if condition.get("type") not in ("PodScheduled", "Ready", "Initialized"):
                errors += rule(formats.qualified_name, condition.get("type") or "", f"status.conditions[{i}].Type")
        nominated = status.get("nominatedNodeName")
        if nominated and nominated != before.get("nominatedNodeName"):
            errors += rule(formats.subdomain, nominated, "status.nominatedNodeName")
        policy = old["spec"].get("restartPolicy")
        for key in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
            errors += _transitions(status.get(key) or [], before.get(key) or [], f"status.{key}", policy, old["spec"], key)
        if bad := _pod_ips(status):
            errors += bad if not _pod_ips(before) else []
        return errors

    def validate_ephemeral(self, obj: Object, old: Object) -> list[FieldError]:
        """An update through /ephemeralcontainers: new ones are well formed, old ones untouched."""
        spec = obj["spec"]
        context = pod_containers.Context(spec, {v["name"]: v for v in spec.get("volumes") or ()})
        errors = pod_containers.ephemeral_containers(spec, context, "spec.ephemeralContainers")
        new = {c.get("name"): c for c in spec.get("ephemeralContainers") or ()}
        for container in old["spec"].get("ephemeralContainers") or ():
            if container["name"] not in new:
                errors.append(forbidden_field("spec.ephemeralContainers", f'existing ephemeral containers "{container["name"]}" may not be removed\n'))
            elif new[container["name"]] != container:
                errors.append(
                    forbidden_field(
                        "spec.ephemeralContainers",
                        f'existing ephemeral containers "{container["name"]}" may not be changed\n'
                        + internal.difference("core.v1.EphemeralContainer", container, new[container["name"]]),
                    )
                )
        return errors

    def validate_resize(self, obj: Object, old: Object) -> list[FieldError]:
        """An update through /resize: nothing but CPU and memory of containers (and the pod) changes, the QoS class stays."""
        errors = _metadata_and_spec(obj)
        if qos_class(obj["spec"]) != ((old.get("status") or {}).get("qosClass") or qos_class(old["spec"])):
            errors.append(invalid_value("spec", qos_class(obj["spec"]), "Pod QOS Class may not change as a result of resizing"))
        munged = dict(obj["spec"])
        for key in ("containers", "initContainers"):
            if len(munged.get(key) or ()) != len(old["spec"].get(key) or ()):
                return [*errors, forbidden_field(f"spec.{key}", "pod resize may not add or remove containers")]
            if key in munged:
                munged[key] = [_with_resources(c, o) for c, o in zip(munged[key], old["spec"][key], strict=True)]
        if "resources" in old["spec"]:
            munged["resources"] = old["spec"]["resources"]
        if munged != old["spec"]:
            errors.append(forbidden_field("spec", "only cpu and memory resources are mutable\n" + internal.difference("core.v1.PodSpec", munged, old["spec"])))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        return pod_warnings.pod(obj["metadata"], obj["spec"], None if old is None else old["spec"])

    def fields(self, obj: Object) -> dict[str, str]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        return {
            "spec.nodeName": spec.get("nodeName") or "",
            "spec.restartPolicy": spec.get("restartPolicy") or "",
            "spec.schedulerName": spec.get("schedulerName") or "",
            "spec.serviceAccountName": spec.get("serviceAccountName") or "",
            "spec.hostNetwork": "true" if spec.get("hostNetwork") else "false",
            "status.phase": status.get("phase") or "",
            "status.podIP": status.get("podIP") or "",
            "status.nominatedNodeName": status.get("nominatedNodeName") or "",
        }

    def grace_seconds(self, obj: Object, asked: int | None) -> int | None:
        """What was asked for, else the pod's own; nothing to wait for when it never reached a node or has finished."""
        spec = obj.get("spec") or {}
        seconds = asked if asked is not None else spec.get("terminationGracePeriodSeconds", self.grace_seconds_default)
        if not spec.get("nodeName") or (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            seconds = 0
        return 1 if seconds < 0 else seconds


def _pair_ips(status: Object) -> None:
    """podIP is the first of podIPs; where they differ, it is the one that counts."""
    ip, ips = status.get("podIP"), status.get("podIPs") or []
    if ip and (not ips or ips[0].get("ip") != ip):
        status["podIPs"] = [{"ip": ip}]
    elif ips and not ip:
        status["podIP"] = ips[0].get("ip") or ""


def _with_resources(container: Object, old: Object) -> Object:
    """`container` with the old one's CPU and memory."""
    changed = dict(container)
    resources = {k: dict(v) if isinstance(v, dict) else v for k, v in (container.get("resources") or {}).items()}
    before = old.get("resources") or {}
    for key in ("requests", "limits"):
        own = {n: a for n, a in (resources.get(key) or {}).items() if n not in ("cpu", "memory")}
        own.update({n: a for n, a in (before.get(key) or {}).items() if n in ("cpu", "memory")})
        if own:
            resources[key] = own
        else:
            resources.pop(key, None)
    changed["resources"] = resources
    return changed


def _affinity_terms(spec: Object) -> list[Object]:
    terms: list[Object] = []
    for key in ("podAffinity", "podAntiAffinity"):
        part = (spec.get("affinity") or {}).get(key) or {}
        terms += part.get("requiredDuringSchedulingIgnoredDuringExecution") or []
        terms += [t.get("podAffinityTerm") or {} for t in part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()]
    return terms


def _match_labels(term: Object, labels: dict[str, str]) -> None:
    """matchLabelKeys and mismatchLabelKeys become part of the term's selector when a pod is created."""
    selector = term.get("labelSelector")
    if selector is None:
        return
    for key, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")):
        for name in term.get(key) or ():
            if name in labels:
                selector.setdefault("matchExpressions", []).append({"key": name, "operator": operator, "values": [labels[name]]})


def _spread_labels(constraint: Object, labels: dict[str, str]) -> None:
    selector = constraint.get("labelSelector")
    if selector is not None:
        for name in constraint.get("matchLabelKeys") or ():
            if name in labels:
                selector.setdefault("matchExpressions", []).append({"key": name, "operator": "In", "values": [labels[name]]})


def _metadata_and_spec(obj: Object) -> Errors:
    meta, spec = obj["metadata"], obj["spec"]
    errors: Errors = []
    annotations = meta.get("annotations")
    if annotations and annotations.get(MIRROR) is not None and not spec.get("nodeName"):
        errors.append(invalid_value(f"metadata.annotations[{MIRROR}]", annotations[MIRROR], "must set spec.nodeName if mirror pod annotation is set"))
    errors += pod_spec.validate(spec, meta, "spec")
    if not spec.get("serviceAccountName"):
        for i, volume in enumerate(spec.get("volumes") or ()):
            for j, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
                if source.get("serviceAccountToken") is not None:
                    errors.append(
                        forbidden_field(
                            f"spec.volumes[{i}].projected.sources[{j}].serviceAccountToken", "must not be specified when serviceAccountName is not set"
                        )
                    )
    return errors + pod_containers.whitespace_in_images(spec, "spec")


def _annotation_updates(obj: Object, old: Object) -> Errors:
    new, before = obj["metadata"].get("annotations") or {}, old["metadata"].get("annotations") or {}
    errors: Errors = []
    if before.get(MIRROR) != new.get(MIRROR):
        text = "may not add mirror pod annotation" if MIRROR not in before else "may not remove or update mirror pod annotation"
        errors.append(forbidden_field(f"metadata.annotations[{MIRROR}]", text))
    return errors


def _deadline(new: int | None, old: int | None) -> tuple[Errors, bool]:
    at = "spec.activeDeadlineSeconds"
    if new is not None:
        if not 0 <= new <= INT32_MAX:
            return [invalid_value(at, new, formats.in_range(0, INT32_MAX))], True
        if old is not None and old < new:
            return [invalid_value(at, new, "must be less than or equal to previous value")], True
    elif old is not None:
        return [invalid_value(at, None, "must not update from a positive integer to nil value")], False
    return [], False


def _added_tolerations(new: list[Object], old: list[Object]) -> Errors:
    bare = [{k: v for k, v in t.items() if k != "tolerationSeconds"} for t in new]
    if any({k: v for k, v in t.items() if k != "tolerationSeconds"} not in bare for t in old):
        return [forbidden_field("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")]
    return pod_spec.tolerations(new, "spec.tolerations")


def _removed_gates(new: list[Object], old: list[Object]) -> Errors:
    before = {g.get("name") for g in old}
    added = [g.get("name") for g in new if g.get("name") not in before]
    return [
        forbidden_field(f"spec.schedulingGates[{i}].name", "only deletion is allowed, but found new scheduling gate")
        for i, g in enumerate(new)
        if g.get("name") in added
    ]


def _munged(new: Object, old: Object) -> tuple[Object, Errors]:
    """`new` with everything that may change put back to `old`'s, and what is wrong with the changes of gated pods."""
    errors: Errors = []
    munged = dict(new)
    for key in ("containers", "initContainers"):
        if key in munged:
            munged[key] = [{**c, "image": o.get("image")} for c, o in zip(munged[key] or (), old.get(key) or (), strict=True)]
    for key in ("activeDeadlineSeconds", "schedulingGates", "tolerations"):
        munged.pop(key, None)
        if key in old:
            munged[key] = old[key]
    if old.get("terminationGracePeriodSeconds", 0) < 0 and munged.get("terminationGracePeriodSeconds") == 1:
        munged["terminationGracePeriodSeconds"] = old["terminationGracePeriodSeconds"]
    if old.get("schedulingGates"):
        before, after = old.get("nodeSelector") or {}, munged.get("nodeSelector") or {}
        if any(after.get(k) != v for k, v in before.items()):
            errors.append(invalid_value("spec.nodeSelector", after, "only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
        _put_back(munged, old, "nodeSelector")
        node, was = (munged.get("affinity") or {}).get("nodeAffinity"), (old.get("affinity") or {}).get("nodeAffinity")
        if node != was:
            errors += _node_affinity_change(node, was)
            kept = {k: v for k, v in {**(munged.get("affinity") or {}), "nodeAffinity": was}.items() if v is not None}
            if kept or "affinity" in old:
                munged["affinity"] = kept
            else:
                munged.pop("affinity", None)
    return munged, errors


def _node_affinity_change(node: Object | None, was: Object | None) -> Errors:
    """A gated pod's node affinity may only be narrowed: expressions added to each existing term."""
    at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    old = ((was or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    if not old:
        return []
    new = ((node or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    if len(new) != len(old):
        return [invalid_value(f"{at}.nodeSelectorTerms", new, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")]
    errors: Errors = []
    for i, (a, b) in enumerate(zip(new, old, strict=True)):
        for key in ("matchExpressions", "matchFields"):
            if not all(e in (a.get(key) or ()) for e in b.get(key) or ()) or (not (b.get("matchExpressions") or b.get("matchFields")) and a != b):
                errors.append(invalid_value(f"{at}.nodeSelectorTerms[{i}]", a, "only additions are allowed (no mutations or deletions)"))
                break
    return errors


def _put_back(munged: Object, old: Object, key: str) -> None:
    munged.pop(key, None)
    if key in old:
        munged[key] = old[key]


def _transitions(new: list[Object], old: list[Object], at: str, policy: str | None, spec: Object, key: str) -> Errors:
    """A container that ended and is not to restart does not come back."""
    errors: Errors = []
    sidecars = {c.get("name") for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"} if key == "initContainerStatuses" else set()
    if policy == "Always":
        return errors
    states = {s.get("name"): s.get("state") or {} for s in new}
    for i, status in enumerate(old):
        ended = (status.get("state") or {}).get("terminated")
        if not ended or status.get("name") in sidecars or (ended.get("exitCode") and policy == "OnFailure"):
            continue
        if status.get("name") in states and not states[status["name"]].get("terminated"):
            errors.append(forbidden_field(f"{at}[{i}].state", "may not be transitioned to non-terminated state"))
    return errors


def _pod_ips(status: Object) -> Errors:
    ips = [p.get("ip") or "" for p in status.get("podIPs") or ()]
    errors: Errors = []
    parsed = [formats.sloppy_ip(ip) for ip in ips]
    errors += [
        invalid_value(f"status.podIPs[{i}]", ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
        for i, (ip, p) in enumerate(zip(ips, parsed, strict=True))
        if p is None
    ]
    if len(ips) > 1:
        versions = [p.version for p in parsed if p]
        if len(ips) > 2 or len(set(versions)) != len(ips):
            errors.append(invalid_value("status.podIPs", status["podIPs"], "may specify no more than one IP for each IP family"))
    return errors


KINDS = [Pod]
