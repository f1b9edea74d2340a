"""The Node authorizer: a node agent (user system:node:NAME in group system:nodes) reads only what its own pods use, and writes only what is its own.

The graph of who uses what is kept by the store's changes: pod -> secrets, config maps, claims, service account, resource claims; volume -> claim and
secrets. What is not about single objects is decided by the fixed rules of the role system:node. It has no opinion on others; a "no" here leaves
the word to RBAC, and its reason to the refusal (as in upstream's plugin/pkg/auth/authorizer/node).
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from fastkube.api import resources
from fastkube.server.authz.decision import DENIED, Decision
from fastkube.server.authz.rules import Rule, allows
from fastkube.server.reader import Object, Reader
from fastkube.server.request import RequestInfo, User

USER_PREFIX = "system:node:"
NODES = "system:nodes"
LEASE_NAMESPACE = "kube-node-lease"
MIRROR = "kubernetes.io/config.mirror"

Reference = tuple[str, str, str]  # (plural, namespace, name)

PODS = resources.parse("v1/pods")
VOLUMES = resources.parse("v1/persistentvolumes")
ATTACHMENTS = resources.parse("storage.k8s.io/v1/volumeattachments")
SLICES = resources.find("resource.k8s.io", "v1", "resourceslices")

_ALLOWED = Decision(True)
_WRITES = ("get", "create", "update", "patch", "delete")


def node_name(user: User) -> str | None:
    """The node whose agent `user` is; None: it is none."""
    if not user.name.startswith(USER_PREFIX) or NODES not in user.groups:
        return None
    return user.name[len(USER_PREFIX) :]


class NodeAuthorizer:
    def __init__(self, reader: Reader) -> None:
        self._graph = Graph(reader)
        self._reader = reader

    def authorize(self, user: User, info: RequestInfo) -> Decision:
        if not user.name.startswith(USER_PREFIX):
            return DENIED
        node = node_name(user)
        if node is None:
            return DENIED
        if not node:
            return Decision(False, f'unknown node for user "{user.name}"')
        if info.is_resource:
            method = self._METHODS.get((info.group, info.resource))
            if method is not None:
                answer = method(self, node, info)
                return _ALLOWED if answer is True else (Decision(False, answer) if answer else DENIED)
        return _ALLOWED if allows(node_rules(), info) else DENIED

    # Each says True, or why not.

    def _read(self, node: str, info: RequestInfo) -> str | bool:
        if info.verb not in ("get", "list", "watch"):
            return "can only read resources of this type"
        if info.subresource:
            return "cannot read subresource"
        if not info.namespace:
            return "can only read namespaced object of this type"
        return self._related(node, info)

    def _get(self, node: str, info: RequestInfo) -> str | bool:
        if info.verb != "get":
            return "can only get individual resources of this type"
        if info.subresource:
            return "cannot get subresource"
        return self._related(node, info)

    def _claim(self, node: str, info: RequestInfo) -> str | bool:
        if info.subresource == "status":
            return self._related(node, info) if info.verb in ("update", "patch") else "can only get/update/patch this type"
        return self._get(node, info)

    def _token(self, node: str, info: RequestInfo) -> str | bool:
        if info.verb != "create" or not info.name:
            return "can only create tokens for individual service accounts"
        if info.subresource != "token":
            return "can only create token subresource of serviceaccount"
        return self._related(node, info)

    def _lease(self, node: str, info: RequestInfo) -> str | bool:
        if info.verb not in _WRITES:
            return "can only get, create, update, patch, or delete a node lease"
        if info.namespace != LEASE_NAMESPACE:
            return f'can only access leases in the "{LEASE_NAMESPACE}" system namespace'
        return info.verb == "create" or info.name == node or "can only access node lease with the same name as the requesting node"

    def _csi_node(self, node: str, info: RequestInfo) -> str | bool:
        if info.verb not in _WRITES:
            return "can only get, create, update, patch, or delete a CSINode"
        if info.subresource:
            return "cannot authorize CSINode subresources"
        return info.verb == "create" or info.name == node or "can only access CSINode with the same name as the requesting node"

    def _slice(self, node: str, info: RequestInfo) -> str | bool:
        if info.subresource:
            return "cannot authorize ResourceSlice subresources"
        if info.verb == "create":
            return True
        if info.verb in ("get", "update", "patch", "delete"):
            return self._related(node, info)
        if info.verb in ("watch", "list", "deletecollection"):
            return _selects(info, "spec.nodeName", node) or "can only list/watch/deletecollection resourceslices with nodeName field selector"
        return "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"

    def _node(self, node: str, info: RequestInfo) -> str | bool:
        if info.subresource == "status":
            return info.verb in ("update", "patch")
        if info.subresource:
            return False
        if info.verb in ("get", "list", "watch"):
            if info.name == node:
                return True
            if not info.name:
                return f"node '{node}' cannot read all nodes, only its own Node object"
            return f"node '{node}' cannot read '{info.name}', only its own Node object"
        return info.verb in ("create", "update", "patch")

    def _pod(self, node: str, info: RequestInfo) -> str | bool:
        if info.subresource == "status":
            return info.verb in ("update", "patch")
        if info.subresource == "eviction":
            return info.verb == "create"
        if info.subresource:
            return False
        if info.verb == "get":
            return self._related(node, info)
        if info.verb in ("list", "watch"):
            if _selects(info, "spec.nodeName", node):
                return True
            return self._related(node, info) if info.name else "can only list/watch pods with spec.nodeName field selector"
        return info.verb in ("create", "delete")

    def _related(self, node: str, info: RequestInfo) -> str | bool:
        if not info.name:
            return "No Object name found"
        reference = (info.resource, info.namespace, info.name)
        return self._graph.related(node, reference) or f"no relationship found between node '{node}' and this object"

    _METHODS = {
        ("", "secrets"): _read,
        ("", "configmaps"): _read,
        ("", "persistentvolumeclaims"): _claim,
        ("", "persistentvolumes"): _get,
        ("resource.k8s.io", "resourceclaims"): _get,
        ("storage.k8s.io", "volumeattachments"): _get,
        ("", "serviceaccounts"): _token,
        ("coordination.k8s.io", "leases"): _lease,
        ("storage.k8s.io", "csinodes"): _csi_node,
        ("resource.k8s.io", "resourceslices"): _slice,
        ("", "nodes"): _node,
        ("", "pods"): _pod,
    }


class Pod(NamedTuple):
    """What the graph remembers of a pod on a node."""

    node: str
    uid: str
    extra: Any  # what may add to the references of a pod that runs: ephemeral containers, claims made for it
    references: frozenset[Reference]


class Graph:
    """Which node uses what. Each pod's references are counted per node, so that an edge goes when the last pod that made it does."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pods: dict[tuple[str, str], Pod] = {}
        self._uses: dict[str, dict[Reference, int]] = {}  # node -> reference -> how many pods
        self._secret_volumes: dict[tuple[str, str], set[str]] = {}  # secret -> volumes that name it
        reader.on_commit(PODS, self._pod_changed)
        reader.on_change(VOLUMES, self._volume_changed)
        for pod in reader.list(PODS):
            self._pod_changed(pod["metadata"]["namespace"], pod["metadata"]["name"], pod)
        for volume in reader.list(VOLUMES):
            self._volume_changed(volume, None)

    def related(self, node: str, reference: Reference) -> bool:
        uses = self._uses.get(node, {})
        if reference in uses:
            return True
        plural, namespace, name = reference
        if plural == "persistentvolumes":
            return self._volume_related(uses, name)
        if plural == "secrets":
            return any(self._volume_related(uses, volume) for volume in self._secret_volumes.get((namespace, name), ()))
        if plural == "volumeattachments":
            attachment = self._reader.get(ATTACHMENTS, None, name)
            return attachment is not None and attachment["spec"].get("nodeName") == node
        if plural == "resourceslices" and SLICES is not None:
            slice_ = self._reader.get(SLICES, None, name)
            return slice_ is not None and slice_["spec"].get("nodeName") == node
        return False

    def _volume_related(self, uses: dict[Reference, int], name: str) -> bool:
        volume = self._reader.get(VOLUMES, None, name)
        claim = (volume or {}).get("spec", {}).get("claimRef") or {}
        return ("persistentvolumeclaims", claim.get("namespace", ""), claim.get("name", "")) in uses

    def _pod_changed(self, namespace: str, name: str, new: Object | None) -> None:
        key = (namespace, name)
        old = self._pods.get(key)
        node = new["spec"].get("nodeName") if new else None
        if old is None and not node:
            return
        if new and node:
            extra = (new["spec"].get("ephemeralContainers"), (new.get("status") or {}).get("resourceClaimStatuses"))
            uid = new["metadata"]["uid"]
            if old is not None and old.node == node and old.uid == uid and old.extra == extra:
                return
            pod = self._pods[key] = Pod(node, uid, extra, frozenset(pod_references(new)))
            uses = self._uses.setdefault(node, {})
            for reference in pod.references:
                uses[reference] = uses.get(reference, 0) + 1
        elif old is not None:
            del self._pods[key]
        if old is not None:
            self._drop(old)

    def _drop(self, pod: Pod) -> None:
        uses = self._uses[pod.node]
        for reference in pod.references:
            uses[reference] -= 1
            if not uses[reference]:
                del uses[reference]
        if not uses:
            del self._uses[pod.node]

    def _volume_changed(self, new: Object | None, old: Object | None) -> None:
        for secret in _volume_secrets(old):
            volumes = self._secret_volumes.get(secret, set())
            volumes.discard((old or {})["metadata"]["name"])
            if not volumes:
                self._secret_volumes.pop(secret, None)
        for secret in _volume_secrets(new):
            self._secret_volumes.setdefault(secret, set()).add((new or {})["metadata"]["name"])


def pod_references(pod: Object) -> Iterator[Reference]:
    """What a pod names, itself included; a mirror pod stands for a file on its node and gives the node nothing."""
    meta, spec = pod["metadata"], pod["spec"]
    namespace, name = meta["namespace"], meta["name"]
    yield "pods", namespace, name
    if MIRROR in (meta.get("annotations") or {}):
        return
    if spec.get("serviceAccountName"):
        yield "serviceaccounts", namespace, spec["serviceAccountName"]
    for secret in spec.get("imagePullSecrets") or ():
        if secret.get("name"):
            yield "secrets", namespace, secret["name"]
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            yield from _container_references(container, namespace)
    for volume in spec.get("volumes") or ():
        yield from _volume_references(volume, namespace, name)
    for claim in spec.get("resourceClaims") or ():
        if claim.get("resourceClaimName"):
            yield "resourceclaims", namespace, claim["resourceClaimName"]
    for status in (pod.get("status") or {}).get("resourceClaimStatuses") or ():
        if status.get("resourceClaimName"):
            yield "resourceclaims", namespace, status["resourceClaimName"]


def _container_references(container: Object, namespace: str) -> Iterator[Reference]:
    for source in container.get("envFrom") or ():
        for field, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if source.get(field):
                yield plural, namespace, source[field].get("name", "")
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        for field, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if source.get(field):
                yield plural, namespace, source[field].get("name", "")


# Where volume types of a pod name a Secret in the pod's namespace.
_VOLUME_SECRETS = (
    ("azureFile", "secretName"), ("cephfs", "secretRef"), ("cinder", "secretRef"), ("flexVolume", "secretRef"), ("rbd", "secretRef"),
    ("scaleIO", "secretRef"), ("iscsi", "secretRef"), ("storageos", "secretRef"), ("csi", "nodePublishSecretRef"), ("secret", "secretName"),
)  # fmt: skip


def _volume_references(volume: Object, namespace: str, pod: str) -> Iterator[Reference]:
    for kind, field in _VOLUME_SECRETS:
        secret = (volume.get(kind) or {}).get(field)
        if secret:
            yield "secrets", namespace, secret if isinstance(secret, str) else secret.get("name", "")
    if volume.get("configMap"):
        yield "configmaps", namespace, volume["configMap"].get("name", "")
    if volume.get("persistentVolumeClaim"):
        yield "persistentvolumeclaims", namespace, volume["persistentVolumeClaim"]["claimName"]
    if volume.get("ephemeral"):
        yield "persistentvolumeclaims", namespace, f"{pod}-{volume['name']}"
    for source in (volume.get("projected") or {}).get("sources") or ():
        for field, plural in (("secret", "secrets"), ("configMap", "configmaps")):
            if source.get(field):
                yield plural, namespace, source[field].get("name", "")


def _volume_secrets(volume: Object | None) -> set[tuple[str, str]]:
    """The secrets that a PersistentVolume names, (namespace, name)."""
    if volume is None:
        return set()
    spec = volume["spec"]
    home = (spec.get("claimRef") or {}).get("namespace", "")
    found: set[tuple[str, str]] = set()
    for source in spec.values():
        for field, secret in (source if isinstance(source, dict) else {}).items():
            if field.endswith("SecretRef") or field == "secretRef":
                found.add((secret.get("namespace") or home, secret.get("name", "")))
    if spec.get("azureFile"):
        found.add((spec["azureFile"].get("secretNamespace") or home, spec["azureFile"]["secretName"]))
    return found


def _selects(info: RequestInfo, field: str, value: str) -> bool:
    """Whether the request's field selector demands that `field` is `value`."""
    return any(part.strip() in (f"{field}={value}", f"{field}=={value}") for part in info.field_selector.split(","))


@functools.cache
def node_rules() -> tuple[Rule, ...]:
    """The rules of upstream's role system:node."""
    rows = orjson.loads((importlib.resources.files("fastkube.server.data") / "rbac.json").read_bytes())
    return tuple(next(r for r in rows if r["kind"] == "ClusterRole" and r["metadata"]["name"] == "system:node")["rules"])
