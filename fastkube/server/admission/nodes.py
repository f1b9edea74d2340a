"""What node agents may write (NodeRestriction), and the taint every new node starts with (TaintNodesByCondition)."""

from __future__ import annotations

from collections.abc import Iterable

from fastkube.api import errors, resources
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CONNECT, CREATE, DELETE, UPDATE, Plugin, forbidden
from fastkube.server.authz import Authorizer
from fastkube.server.authz.node import LEASE_NAMESPACE, MIRROR, node_name, pod_references
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes, RequestInfo

PODS = resources.parse("v1/pods")
NODES = resources.parse("v1/nodes")
VOLUMES = resources.parse("v1/persistentvolumes")
CLAIMS = resources.parse("v1/persistentvolumeclaims")
DRIVERS = resources.parse("storage.k8s.io/v1/csidrivers")
NOT_READY = "node.kubernetes.io/not-ready"

# Labels of kubernetes.io and k8s.io that a node agent may set on its node; and domains all of whose labels it may.
_OWN_LABELS = frozenset(
    (
        "kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os", "beta.kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type", "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone", "failure-domain.kubernetes.io/region", "failure-domain.kubernetes.io/zone",
    )
)  # fmt: skip
_OWN_DOMAINS = ("kubelet.kubernetes.io", "node.kubernetes.io")
_RESTRICTED_DOMAIN = "node-restriction.kubernetes.io"


class NodeRestriction(Plugin):
    """Holds a node agent to its own node, lease and pods, beyond what its authorizer can see (names in bodies, bindings, labels)."""

    name = "NodeRestriction"

    def __init__(self, reader: Reader, authorizer: Authorizer) -> None:
        self._reader = reader
        self._authorizer = authorizer
        self._checks = {
            ("", "pods"): self._pod, ("", "nodes"): self._node, ("", "persistentvolumeclaims"): self._claim, ("", "serviceaccounts"): self._token,
            ("coordination.k8s.io", "leases"): self._lease, ("storage.k8s.io", "csinodes"): self._csi_node, ("resource.k8s.io", "resourceslices"): self._slice,
        }  # fmt: skip

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation != CONNECT and (resource.group, resource.plural) in self._checks

    def admit(self, attributes: AdmissionAttributes) -> None:
        node = node_name(attributes.user)
        if node is None:
            return
        if not node:
            raise forbidden(attributes, f'could not determine node from user "{attributes.user.name}"')
        self._checks[attributes.resource.group, attributes.resource.plural](attributes, node)

    # -- pods ---------------------------------------------------------------------------------------------------------------------------------

    def _pod(self, a: AdmissionAttributes, node: str) -> None:
        if a.subresource == "status":
            self._pod_status(a, node)
        elif a.subresource == "eviction":
            if self._stored_pod(a)["spec"].get("nodeName") != node:
                raise forbidden(a, f"node {node} can only evict pods with spec.nodeName set to itself")
        elif a.subresource:
            raise forbidden(a, f"unexpected pod subresource \"{a.subresource}\", only 'status' and 'eviction' are allowed")
        elif a.operation == CREATE:
            self._pod_create(a, node)
        elif a.operation == DELETE:
            if self._stored_pod(a)["spec"].get("nodeName") != node:
                raise forbidden(a, f'node "{node}" can only delete pods with spec.nodeName set to itself')
        else:
            raise forbidden(a, f'unexpected operation "{a.operation}", node "{node}" can only create and delete mirror pods')

    def _stored_pod(self, a: AdmissionAttributes) -> Object:
        pod = self._reader.get(PODS, a.namespace, a.name)
        if pod is None:
            raise errors.not_found("pods", "", a.name)
        return pod

    def _pod_status(self, a: AdmissionAttributes, node: str) -> None:
        new, old = a.obj or {}, a.old or {}
        if a.operation != UPDATE:
            raise forbidden(a, f'unexpected operation "{a.operation}"')
        if old["spec"].get("nodeName") != node:
            raise forbidden(a, f'node "{node}" can only update pod status for pods with spec.nodeName set to itself')
        if (old["metadata"].get("labels") or {}) != (new["metadata"].get("labels") or {}):
            raise forbidden(a, f'node "{node}" cannot update labels through pod status')
        if (old.get("status") or {}).get("resourceClaimStatuses") != (new.get("status") or {}).get("resourceClaimStatuses"):
            raise forbidden(a, f'node "{node}" cannot update resource claim statues')

    def _pod_create(self, a: AdmissionAttributes, node: str) -> None:
        pod = a.obj or {}
        meta, spec = pod["metadata"], pod["spec"]
        if MIRROR not in (meta.get("annotations") or {}):
            raise forbidden(a, f'pod does not have "{MIRROR}" annotation, node "{node}" can only create mirror pods')
        if spec.get("nodeName") != node:
            raise forbidden(a, f'node "{node}" can only create pods with spec.nodeName set to itself')
        self._pod_owner(a, node, meta.get("ownerReferences") or [])
        if spec.get("serviceAccountName"):
            raise forbidden(a, f'node "{node}" can not create pods that reference a service account')
        bare = {**pod, "metadata": {"namespace": a.namespace, "name": ""}}
        used = {plural for plural, _, _ in pod_references(bare)}
        for plural in ("secrets", "configmaps", "persistentvolumeclaims", "resourceclaims"):
            if plural in used:
                raise forbidden(a, f'node "{node}" can not create pods that reference {plural}')
        for volume in spec.get("volumes") or ():
            if any(s.get("clusterTrustBundle") for s in (volume.get("projected") or {}).get("sources") or ()):
                raise forbidden(a, f'node "{node}" can not create pods that reference clustertrustbundles')

    def _pod_owner(self, a: AdmissionAttributes, node: str, owners: list[Object]) -> None:
        if len(owners) > 1:
            raise forbidden(a, f'node "{node}" can only create pods with a single owner reference set to itself')
        owner = owners[0] if owners else {}
        if (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) != ("v1", "Node", node):
            raise forbidden(a, f'node "{node}" can only create pods with an owner reference set to itself')
        if not owner.get("controller"):
            raise forbidden(a, f'node "{node}" can only create pods with a controller owner reference set to itself')
        if owner.get("blockOwnerDeletion"):
            raise forbidden(a, f'node "{node}" must not set blockOwnerDeletion on an owner reference')
        stored = self._reader.get(NODES, None, node)
        if stored is None:
            raise errors.not_found("nodes", "", node)
        if owner.get("uid") != stored["metadata"]["uid"]:
            raise forbidden(a, f"node {node} UID mismatch: expected {owner.get('uid')} got {stored['metadata']['uid']}")

    # -- the node and what belongs to it --------------------------------------------------------------------------------------------------------

    def _node(self, a: AdmissionAttributes, node: str) -> None:
        requested = a.name or ((a.obj or {}).get("metadata") or {}).get("name", "")
        if requested != node:
            raise forbidden(a, f'node "{node}" is not allowed to modify node "{requested}"')
        new, old = a.obj or {}, a.old or {}
        labels, before = (new.get("metadata") or {}).get("labels") or {}, (old.get("metadata") or {}).get("labels") or {}
        changed = forbidden_labels(k for k in {*labels, *before} if labels.get(k) != before.get(k))
        if a.operation == CREATE and changed:
            raise forbidden(a, f'node "{node}" is not allowed to set the following labels: {", ".join(changed)}')
        if a.operation == UPDATE:
            if (new["spec"].get("taints") or []) != (old["spec"].get("taints") or []):
                raise forbidden(a, f'node "{node}" is not allowed to modify taints')
            if changed:
                raise forbidden(a, f"is not allowed to modify labels: {', '.join(changed)}")
            if (new["metadata"].get("ownerReferences") or []) != (old["metadata"].get("ownerReferences") or []):
                raise forbidden(a, f'node "{node}" is not allowed to modify ownerReferences')

    def _lease(self, a: AdmissionAttributes, node: str) -> None:
        if a.namespace != LEASE_NAMESPACE:
            raise forbidden(a, f'can only access leases in the "{LEASE_NAMESPACE}" system namespace')
        if _name(a) != node:
            raise forbidden(a, "can only access node lease with the same name as the requesting node")

    def _csi_node(self, a: AdmissionAttributes, node: str) -> None:
        if _name(a) != node:
            raise forbidden(a, "can only access CSINode with the same name as the requesting node")

    def _slice(self, a: AdmissionAttributes, node: str) -> None:
        for slice_ in (a.obj, a.old):
            if slice_ is not None and slice_["spec"].get("nodeName") != node:
                raise forbidden(
                    a,
                    "can only create ResourceSlice with the same NodeName as the requesting node"
                    if a.operation == CREATE
                    else "can only delete ResourceSlice with the same NodeName as the requesting node",
                )

    def _claim(self, a: AdmissionAttributes, node: str) -> None:
        if a.subresource != "status":
            raise forbidden(a, "may only update PVC status")
        if a.operation != UPDATE:
            raise forbidden(a, f'unexpected operation "{a.operation}"')
        if _claim_core(a.obj or {}) != _claim_core(a.old or {}):
            raise forbidden(a, f'node "{node}" is not allowed to update fields other than status.capacity and status.conditions')

    # -- tokens -------------------------------------------------------------------------------------------------------------------------------

    def _token(self, a: AdmissionAttributes, node: str) -> None:
        if a.operation != CREATE or a.subresource != "token":
            return
        spec = (a.obj or {}).get("spec") or {}
        reference = spec.get("boundObjectRef") or {}
        if (reference.get("apiVersion"), reference.get("kind")) != ("v1", "Pod") or not reference.get("name"):
            raise forbidden(a, "node requested token not bound to a pod")
        if not reference.get("uid"):
            raise forbidden(a, "node requested token with a pod binding without a uid")
        pod = self._reader.get(PODS, a.namespace, reference["name"])
        if pod is None:
            raise errors.not_found("pods", "", reference["name"])
        if reference["uid"] != pod["metadata"]["uid"]:
            why = f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record. The object might have been deleted and then recreated"
            raise forbidden(a, why)
        if pod["spec"].get("nodeName") != node:
            raise forbidden(a, "node requested token bound to a pod scheduled on a different node")
        self._audiences(a, pod, spec.get("audiences") or [""])

    def _audiences(self, a: AdmissionAttributes, pod: Object, audiences: list[str]) -> None:
        """A node asks only for audiences that its pod wants (KEP-4412), unless RBAC allows it the audience by name."""
        if len(audiences) > 1:
            raise forbidden(a, f"node may only request 0 or 1 audiences, got {len(audiences)}")
        if audiences[0] in set(self._wanted(pod)):
            return
        info = RequestInfo("request-serviceaccounts-token-audience", "", True, "", "v1", audiences[0], "", a.namespace, a.name)
        if not self._authorizer.authorize(a.user, info).allowed:
            raise forbidden(
                a,
                f'audience "{audiences[0]}" not found in pod spec volume, system:node:{node_name(a.user)} is not authorized to request tokens for this audience',
            )

    def _wanted(self, pod: Object) -> Iterable[str]:
        for volume in pod["spec"].get("volumes") or ():
            for source in (volume.get("projected") or {}).get("sources") or ():
                if source.get("serviceAccountToken"):
                    yield source["serviceAccountToken"].get("audience") or ""
            driver = (volume.get("csi") or {}).get("driver") or self._driver(pod, volume)
            found = self._reader.get(DRIVERS, None, driver) if driver else None
            for request in ((found or {}).get("spec") or {}).get("tokenRequests") or ():
                yield request.get("audience") or ""

    def _driver(self, pod: Object, volume: Object) -> str:
        """The CSI driver of the volume that a claim is bound to."""
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (
            f"{pod['metadata']['name']}-{volume['name']}" if volume.get("ephemeral") else ""
        )
        claim = self._reader.get(CLAIMS, pod["metadata"]["namespace"], name) if name else None
        bound = self._reader.get(VOLUMES, None, claim["spec"]["volumeName"]) if claim and claim["spec"].get("volumeName") else None
        return (((bound or {}).get("spec") or {}).get("csi") or {}).get("driver") or ""


def _name(a: AdmissionAttributes) -> str:
    return ((a.obj or {}).get("metadata") or {}).get("name", "") if a.operation == CREATE else a.name


def _claim_core(claim: Object) -> Object:
    meta = {k: v for k, v in claim.get("metadata", {}).items() if k not in ("resourceVersion", "managedFields")}
    own = ("capacity", "conditions", "allocatedResourceStatuses", "allocatedResources")
    return {**claim, "metadata": meta, "status": {k: v for k, v in (claim.get("status") or {}).items() if k not in own}}


def forbidden_labels(keys: Iterable[str]) -> list[str]:
    """Those labels that a node agent may not touch, sorted."""
    found = []
    for key in keys:
        domain = key.split("/", 1)[0] if "/" in key else ""
        reserved = domain in ("kubernetes.io", "k8s.io") or domain.endswith((".kubernetes.io", ".k8s.io"))
        own = key in _OWN_LABELS or any(domain == d or domain.endswith("." + d) for d in _OWN_DOMAINS)
        if domain == _RESTRICTED_DOMAIN or domain.endswith("." + _RESTRICTED_DOMAIN) or (reserved and not own):
            found.append(key)
    return sorted(found)


class TaintNodesByCondition(Plugin):
    """A new node takes no pods until its conditions are known."""

    name = "TaintNodesByCondition"

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and not subresource and resource is NODES

    def admit(self, attributes: AdmissionAttributes) -> None:
        if attributes.obj is None:
            return
        spec = attributes.obj.setdefault("spec", {})
        taints = spec.get("taints") or []
        if not any(t.get("key") == NOT_READY and t.get("effect") == "NoSchedule" for t in taints):
            spec["taints"] = [*taints, {"key": NOT_READY, "effect": "NoSchedule"}]
