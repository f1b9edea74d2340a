"""Tables of networking, access, storage, admission and the other groups that a cluster's owner looks at."""

from __future__ import annotations

from fastkube.api.tables.core import load_balancer
from fastkube.api.tables.model import NONE, UNSET, Cells, Object, Printer, age, columns, condition, duration, get, joined, name_of, selector, some


def _ingress(obj: Object) -> Cells:
    spec = obj.get("spec") or {}
    rules = spec.get("rules") or []
    hosts = [r["host"] for r in rules if r.get("host")]
    shown = ",".join(hosts[:3]) + (f" + {len(rules) - 3} more..." if len(hosts) >= 3 and len(rules) > 3 else "")
    return [
        name_of(obj), spec.get("ingressClassName") or NONE, shown or "*", load_balancer(obj.get("status") or {}), "80, 443" if spec.get("tls") else "80", age(obj),
    ]  # fmt: skip


def _ingress_class(obj: Object) -> Cells:
    given = get(obj, "spec", "parameters")
    text = NONE
    if given:
        text = given.get("kind", "") + (f".{given['apiGroup']}" if given.get("apiGroup") is not None else "") + f"/{given.get('name', '')}"
    return [name_of(obj), get(obj, "spec", "controller", default=""), text, age(obj)]


def _ip_address(obj: Object) -> Cells:
    parent = get(obj, "spec", "parentRef")
    if not parent:
        return [name_of(obj), NONE]
    resource = (parent.get("resource", "") + (f".{parent['group']}" if parent.get("group") else "")).lower()
    return [name_of(obj), "/".join(p for p in (resource, parent.get("namespace"), parent.get("name", "")) if p)]


def _slice(obj: Object) -> Cells:
    def port(of: Object) -> str:
        return str(of["port"]) if of.get("port") is not None else of["name"] if of.get("name") is not None else "*"

    addresses = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return [name_of(obj), obj.get("addressType", ""), some([port(p) for p in obj.get("ports") or ()]) or UNSET, some(addresses) or UNSET, age(obj)]


def _binding(obj: Object) -> Cells:
    of: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for s in obj.get("subjects") or ():
        if s.get("kind") in of:
            of[s["kind"]].append(f"{s.get('namespace', '')}/{s.get('name', '')}" if s["kind"] == "ServiceAccount" else s.get("name", ""))
    role = obj.get("roleRef") or {}
    return [name_of(obj), f"{role.get('kind', '')}/{role.get('name', '')}", age(obj), *(", ".join(v) for v in of.values())]


def _default_name(obj: Object, *annotations: str) -> str:
    held = get(obj, "metadata", "annotations", default={})
    return name_of(obj) + (" (default)" if any(held.get(a) == "true" for a in annotations) else "")


def _storage_class(obj: Object) -> Cells:
    name = _default_name(obj, "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
    policies = [obj.get("provisioner", ""), obj.get("reclaimPolicy") or "Delete", obj.get("volumeBindingMode") or "Immediate"]
    return [name, *policies, bool(obj.get("allowVolumeExpansion")), age(obj)]


def _csi_driver(obj: Object) -> Cells:
    spec = obj.get("spec") or {}
    tokens = spec.get("tokenRequests")
    return [
        name_of(obj), spec.get("attachRequired", True), bool(spec.get("podInfoOnMount")), bool(spec.get("storageCapacity")),
        UNSET if tokens is None else ",".join(t.get("audience", "") for t in tokens), bool(spec.get("requiresRepublish")),
        joined(spec.get("volumeLifecycleModes") or ()), age(obj),
    ]  # fmt: skip


def _attachment(obj: Object) -> Cells:
    spec = obj.get("spec") or {}
    volume = get(spec, "source", "persistentVolumeName", default="")
    return [name_of(obj), spec.get("attacher", ""), volume, spec.get("nodeName", ""), get(obj, "status", "attached", default=False), age(obj)]


def _signing_request(obj: Object) -> Cells:
    spec = obj.get("spec") or {}
    held = {c.get("type") for c in get(obj, "status", "conditions", default=())}
    state = "Denied" if "Denied" in held else "Approved" if "Approved" in held else "Pending"
    state += ",Failed" if "Failed" in held else ""
    state += ",Issued" if get(obj, "status", "certificate") else ""
    asked = spec.get("expirationSeconds")
    return [name_of(obj), age(obj), spec.get("signerName") or NONE, spec.get("username", ""), NONE if asked is None else duration(asked), state]


def _policy(rules: str) -> Printer:
    def cells(obj: Object) -> Cells:
        kind = get(obj, "spec", "paramKind")
        text = f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}" if kind else UNSET
        return [name_of(obj), len(get(obj, "spec", rules, default=())), text, age(obj)]

    return Printer(columns(f"Name|{rules.capitalize()}:integer|ParamKind|Age"), cells)


def _policy_binding(obj: Object) -> Cells:
    ref = get(obj, "spec", "paramRef")
    text = UNSET
    if ref and ref.get("name"):
        text = f"{ref.get('namespace') or '*'}/{ref['name']}"
    elif ref and ref.get("selector") is not None:
        text = selector(ref["selector"])
    return [name_of(obj), get(obj, "spec", "policyName", default=""), text, age(obj)]


def _api_service(obj: Object) -> Cells:
    service = get(obj, "spec", "service")
    available = condition(obj, "Available")
    state = "Unknown"
    if available:
        state = "True" if available.get("status") == "True" else f"{available.get('status', '')} ({available.get('reason', '')})"
    return [name_of(obj), f"{service.get('namespace', '')}/{service.get('name', '')}" if service else "Local", state, age(obj)]


def _flow_schema(obj: Object) -> Cells:
    spec = obj.get("spec") or {}
    dangling = (condition(obj, "Dangling") or {}).get("status", "?")
    method = get(spec, "distinguisherMethod", "type", default=NONE)
    return [name_of(obj), get(spec, "priorityLevelConfiguration", "name", default=""), spec.get("matchingPrecedence", 0), method, age(obj), dangling]


def _priority_level(obj: Object) -> Cells:
    limited = get(obj, "spec", "limited", default={})
    queuing = get(limited, "limitResponse", "queuing", default={})
    shares = limited.get("nominalConcurrencyShares", NONE)
    return [name_of(obj), get(obj, "spec", "type", default=""), shares, *(queuing.get(k, NONE) for k in ("queues", "handSize", "queueLengthLimit")), age(obj)]


def _resource_claim(obj: Object) -> Cells:
    deleted, allocated = get(obj, "metadata", "deletionTimestamp"), get(obj, "status", "allocation")
    states = ["deleted"] if deleted else []
    if allocated is not None:
        states += ["allocated", "reserved"] if get(obj, "status", "reservedFor") else ["allocated"]
    elif not deleted:
        states.append("pending")
    return [name_of(obj), ",".join(states), age(obj)]


def _resource_slice(obj: Object) -> Cells:
    spec = obj.get("spec") or {}
    return [name_of(obj), spec.get("nodeName", ""), spec.get("driver", ""), get(spec, "pool", "name", default=""), age(obj)]


def _plain(obj: Object) -> Cells:
    return [name_of(obj), age(obj)]


_BINDING = Printer(columns("Name|Role|Age|+Users|+Groups|+ServiceAccounts"), _binding)
_WEBHOOKS = Printer(columns("Name|Webhooks:integer|Age"), lambda o: [name_of(o), len(o.get("webhooks") or ()), age(o)])
_POLICY_BINDING = Printer(columns("Name|PolicyName|ParamRef|Age"), _policy_binding)

PRINTERS = {
    ("networking.k8s.io", "Ingress"): Printer(columns("Name|Class|Hosts|Address|Ports|Age"), _ingress),
    ("networking.k8s.io", "IngressClass"): Printer(columns("Name|Controller|Parameters|Age"), _ingress_class),
    ("networking.k8s.io", "NetworkPolicy"): Printer(columns("Name|Pod-Selector|Age"), lambda o: [name_of(o), selector(get(o, "spec", "podSelector")), age(o)]),
    ("networking.k8s.io", "IPAddress"): Printer(columns("Name|ParentRef"), _ip_address),
    ("networking.k8s.io", "ServiceCIDR"): Printer(columns("Name|CIDRs|Age"), lambda o: [name_of(o), ",".join(get(o, "spec", "cidrs", default=())), age(o)]),
    ("discovery.k8s.io", "EndpointSlice"): Printer(columns("Name|AddressType|Ports|Endpoints|Age"), _slice),
    ("rbac.authorization.k8s.io", "RoleBinding"): _BINDING,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _BINDING,
    ("storage.k8s.io", "StorageClass"): Printer(columns("Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age"), _storage_class),
    ("storage.k8s.io", "CSIDriver"): Printer(
        columns(
            "Name|AttachRequired:boolean|PodInfoOnMount:boolean|StorageCapacity:boolean|TokenRequests|RequiresRepublish:boolean|Modes|Age",
        ),
        _csi_driver,
    ),
    ("storage.k8s.io", "CSINode"): Printer(columns("Name|Drivers:integer|Age"), lambda o: [name_of(o), len(get(o, "spec", "drivers", default=())), age(o)]),
    ("storage.k8s.io", "CSIStorageCapacity"): Printer(
        columns("Name|StorageClassName|Capacity"), lambda o: [name_of(o), o.get("storageClassName", ""), o.get("capacity") or UNSET]
    ),
    ("storage.k8s.io", "VolumeAttachment"): Printer(columns("Name|Attacher|PV|Node|Attached:boolean|Age"), _attachment),
    ("storage.k8s.io", "VolumeAttributesClass"): Printer(
        columns("Name|DriverName|Age"),
        lambda o: [_default_name(o, "volumeattributesclass.alpha.kubernetes.io/is-default-class"), o.get("driverName", ""), age(o)],
    ),
    ("scheduling.k8s.io", "PriorityClass"): Printer(
        columns("Name|Value:integer|Global-Default:boolean|Age|PreemptionPolicy"),
        lambda o: [name_of(o), o.get("value", 0), bool(o.get("globalDefault")), age(o), o.get("preemptionPolicy", "")],
    ),
    ("coordination.k8s.io", "Lease"): Printer(columns("Name|Holder|Age"), lambda o: [name_of(o), get(o, "spec", "holderIdentity", default=""), age(o)]),
    ("node.k8s.io", "RuntimeClass"): Printer(columns("Name|Handler|Age"), lambda o: [name_of(o), o.get("handler", ""), age(o)]),
    ("certificates.k8s.io", "CertificateSigningRequest"): Printer(columns("Name|Age|SignerName|Requestor|RequestedDuration|Condition"), _signing_request),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): _WEBHOOKS,
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): _WEBHOOKS,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): _policy("validations"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"): _policy("mutations"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"): _POLICY_BINDING,
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"): _POLICY_BINDING,
    ("apiregistration.k8s.io", "APIService"): Printer(columns("Name|Service|Available|Age"), _api_service),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"): Printer(columns("Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL"), _flow_schema),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"): Printer(
        columns("Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age"), _priority_level
    ),
    ("resource.k8s.io", "DeviceClass"): Printer(columns("Name|Age"), _plain),
    ("resource.k8s.io", "ResourceClaim"): Printer(columns("Name|State|Age"), _resource_claim),
    ("resource.k8s.io", "ResourceClaimTemplate"): Printer(columns("Name|Age"), _plain),
    ("resource.k8s.io", "ResourceSlice"): Printer(columns("Name|Node|Driver|Pool|Age"), _resource_slice),
}
