"""Defaults of pods and pod templates (upstream: pkg/apis/core/v1/defaults.go). Whole objects, in place, idempotent."""

from __future__ import annotations

import functools
import re
from typing import Any

from fastkube.api import quantity

Object = dict[str, Any]

IMAGES_CACHED_MAX = 4096  # image references whose pull policy is remembered


_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\]"
_REFERENCE = re.compile(
    rf"(?:(?:{_DOMAIN})(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::(\w[\w.-]{{0,127}}))?(@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}})?", re.ASCII
)  # fmt: skip


@functools.lru_cache(maxsize=IMAGES_CACHED_MAX)
def pull_policy(image: str) -> str:
    """Always for what is tagged `latest`, by name or for want of a tag and digest; IfNotPresent otherwise, and for what is no reference at all."""
    m = _REFERENCE.fullmatch(image)
    if m is None:
        return "IfNotPresent"
    tag, digest = m.groups()
    return "Always" if (tag == "latest" if tag or digest else True) else "IfNotPresent"


def pod(obj: Object) -> None:
    """A Pod: its spec's defaults and those that only running pods get."""
    spec = obj.get("spec")
    if spec is None:
        spec = obj["spec"] = {"containers": None}
    pod_spec(spec)
    if spec.get("enableServiceLinks") is None:
        spec["enableServiceLinks"] = True
    for key in ("containers", "initContainers"):
        for container in spec.get(key) or ():
            _requests_from_limits(container)
            if spec.get("hostNetwork"):
                for port in container.get("ports") or ():
                    if not port.get("hostPort"):
                        port["hostPort"] = port.get("containerPort", 0)
    if spec.get("resources"):
        _pod_level_requests(spec)


def _requests_from_limits(container: Object) -> None:
    resources = container.get("resources")
    if resources and resources.get("limits"):
        requests = resources.setdefault("requests", {})
        for name, amount in resources["limits"].items():
            if name not in requests:
                requests[name] = amount


def _pod_level_requests(spec: Object) -> None:
    """Pod-level requests: what all containers ask for of a resource that has a pod-level limit, else the limit."""
    resources = spec["resources"]
    limits = resources.get("limits")
    if not limits:
        return
    requests = resources.get("requests") or {}
    for name, limit in limits.items():
        if name in requests or not (name in ("cpu", "memory") or name.startswith("hugepages-")):
            continue
        total = 0
        asked = False
        for container in spec.get("containers") or ():
            amount = ((container.get("resources") or {}).get("requests") or {}).get(name)
            if amount is not None:
                total, asked = total + quantity.nanos(amount), True
        requests[name] = quantity.text(total, quantity.parse(limit)[1]) if asked and not name.startswith("hugepages-") else limit
    if requests:
        resources["requests"] = requests


def pod_spec(spec: Object) -> None:
    """What a PodSpec gets in a template as in a pod."""
    if not spec.get("dnsPolicy"):
        spec["dnsPolicy"] = "ClusterFirst"
    if not spec.get("restartPolicy"):
        spec["restartPolicy"] = "Always"
    if spec.get("securityContext") is None:
        spec["securityContext"] = {}
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = 30
    if not spec.get("schedulerName"):
        spec["schedulerName"] = "default-scheduler"
    if "volumes" in spec:
        for volume in spec["volumes"] or ():
            _volume(volume)
    for container in spec.get("containers") or ():
        _container(container)
    if "initContainers" in spec:
        for container in spec["initContainers"] or ():
            _container(container)
    if "ephemeralContainers" in spec:
        for container in spec["ephemeralContainers"] or ():
            _container(container)
    account = spec.get("serviceAccountName")
    if account:
        spec["serviceAccount"] = account  # the deprecated twin follows the field
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]


def _container(container: Object) -> None:
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = pull_policy(container.get("image") or "")
    if not container.get("terminationMessagePath"):
        container["terminationMessagePath"] = "/dev/termination-log"
    if not container.get("terminationMessagePolicy"):
        container["terminationMessagePolicy"] = "File"
    if container.get("resources") is None:
        container["resources"] = {}
    for port in container.get("ports") or ():
        if not port.get("protocol"):
            port["protocol"] = "TCP"
    for variable in container.get("env") or ():
        source = variable.get("valueFrom")
        if source and source.get("fieldRef") is not None:
            _field_ref(source["fieldRef"])
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(key)
        if probe is not None:
            _probe(probe)
    lifecycle = container.get("lifecycle")
    if lifecycle:
        for hook in ("postStart", "preStop"):
            handler = lifecycle.get(hook)
            if handler and handler.get("httpGet") is not None:
                _http_get(handler["httpGet"])


def _field_ref(ref: Object) -> None:
    if not ref.get("apiVersion"):
        ref["apiVersion"] = "v1"


def _http_get(get: Object) -> None:
    if not get.get("path"):
        get["path"] = "/"
    if not get.get("scheme"):
        get["scheme"] = "HTTP"


def _probe(probe: Object) -> None:
    for key, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(key):
            probe[key] = value
    if probe.get("httpGet") is not None:
        _http_get(probe["httpGet"])
    grpc = probe.get("grpc")
    if grpc is not None and grpc.get("service") is None:
        grpc["service"] = ""


def _downward(items: list[Object] | None) -> None:
    for item in items or ():
        if item.get("fieldRef") is not None:
            _field_ref(item["fieldRef"])


_MODE = 0o644
_VOLUME_FIELDS: dict[str, dict[str, Any]] = {
    "iscsi": {"iscsiInterface": "default"},
    "rbd": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "azureDisk": {"cachingMode": "ReadWrite", "kind": "Shared", "fsType": "ext4", "readOnly": False},
    "scaleIO": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
}


def _volume(volume: Object) -> None:
    if len(volume) < 2 and all(k == "name" for k in volume):
        volume["emptyDir"] = {}
        return
    for key in ("secret", "configMap", "downwardAPI", "projected"):
        source = volume.get(key)
        if source is not None:
            if source.get("defaultMode") is None:
                source["defaultMode"] = _MODE
            if key == "downwardAPI":
                _downward(source.get("items"))
            elif key == "projected":
                for projection in source.get("sources") or ():
                    token = projection.get("serviceAccountToken")
                    if token is not None and token.get("expirationSeconds") is None:
                        token["expirationSeconds"] = 3600
                    if projection.get("downwardAPI") is not None:
                        _downward(projection["downwardAPI"].get("items"))
            return
    host = volume.get("hostPath")
    if host is not None:
        if host.get("type") is None:
            host["type"] = ""
        return
    image = volume.get("image")
    if image is not None and not image.get("pullPolicy"):
        image["pullPolicy"] = pull_policy(image.get("reference") or "")
    ephemeral = volume.get("ephemeral")
    if ephemeral and ephemeral.get("volumeClaimTemplate"):
        claim = ephemeral["volumeClaimTemplate"].setdefault("spec", {})
        if claim.get("volumeMode") is None:
            claim["volumeMode"] = "Filesystem"
    volume_sources(volume)


def volume_sources(volume: Object) -> None:
    """Defaults that a pod's volume and a PersistentVolume's spec share."""
    for key, fields in _VOLUME_FIELDS.items():
        source = volume.get(key)
        if source is not None:
            for field, value in fields.items():
                if not source.get(field) and source.get(field) is not False:
                    source[field] = value


def template(obj: Object, selector: bool = False) -> None:
    """The PodTemplateSpec of a workload. `selector`: the labels it must have can be said to be {} (`schema` keeps that)."""
    if not selector and (meta := obj.get("metadata")) and meta.get("labels") == {}:
        del meta["labels"]
    spec = obj.get("spec")
    if spec is not None:
        pod_spec(spec)
