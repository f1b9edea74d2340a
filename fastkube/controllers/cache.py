"""What controllers keep of the objects they watch: everything decisions are made of, nothing that is only for people.

10,000 cached pods are most of a controller manager's memory, so a pod is cut down to what some controller reads. Consequence for
writers: pods are only ever patched or deleted, never PUT from the cache.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

_CONTAINER_KEYS = ("name", "ports", "resources", "restartPolicy")
_POD_SPEC_KEYS = (
    "nodeName", "hostname", "subdomain", "hostNetwork", "setHostnameAsFQDN", "restartPolicy", "tolerations", "priority", "priorityClassName",
    "schedulerName", "affinity", "nodeSelector", "terminationGracePeriodSeconds", "activeDeadlineSeconds", "overhead", "resourceClaims", "schedulingGates",
)  # fmt: skip
_POD_STATUS_KEYS = ("phase", "reason", "conditions", "podIP", "podIPs", "hostIP", "hostIPs", "startTime", "nominatedNodeName", "resourceClaimStatuses")
_VOLUME_KEYS = ("persistentVolumeClaim", "ephemeral")


def slim(obj: Object) -> Object:
    """Without managedFields: they are half of many an object, and no controller reads them."""
    obj["metadata"].pop("managedFields", None)
    return obj


def slim_pod(pod: Object) -> Object:
    meta = pod["metadata"]
    meta.pop("managedFields", None)
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    kept = {k: spec[k] for k in _POD_SPEC_KEYS if k in spec}
    for group in ("containers", "initContainers"):
        if group in spec:
            kept[group] = [{k: c[k] for k in _CONTAINER_KEYS if k in c} for c in spec[group]]
    volumes = [v for v in spec.get("volumes") or () if any(k in v for k in _VOLUME_KEYS)]
    if volumes:
        kept["volumes"] = volumes
    kept_status = {k: status[k] for k in _POD_STATUS_KEYS if k in status}
    for group in ("containerStatuses", "initContainerStatuses"):
        if group in status:
            kept_status[group] = [_slim_container_status(c) for c in status[group]]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": kept, "status": kept_status}


def _slim_container_status(status: Object) -> Object:
    kept = {"name": status.get("name"), "ready": status.get("ready"), "restartCount": status.get("restartCount", 0)}
    state = status.get("state") or {}
    if "terminated" in state:
        terminated = state["terminated"]
        kept["state"] = {"terminated": {k: terminated[k] for k in ("exitCode", "finishedAt", "reason") if k in terminated}}
    return kept


def slim_node(node: Object) -> Object:
    """Without the images it holds."""
    slim(node)
    node.get("status", {}).pop("images", None)
    return node


TRANSFORMS = {"v1/pods": slim_pod, "v1/nodes": slim_node}
