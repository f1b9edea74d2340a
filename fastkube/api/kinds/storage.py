"""PersistentVolume and PersistentVolumeClaim (upstream: ValidatePersistentVolume, ValidatePersistentVolumeClaim and their strategies)."""

from __future__ import annotations

from fastkube.api import formats, internal, quantity
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, immutable, label_selector, positive_quantity, rule
from fastkube.api.kinds.pod_defaults import volume_sources
from fastkube.api.kinds.pod_spec import node_selector
from fastkube.api.kinds.pod_volumes import ONE_SOURCE, PERSISTENT_SOURCES, backsteps, csi_driver_name
from fastkube.runtime import clock

ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
RECLAIM = ("Delete", "Recycle", "Retain")
VOLUME_MODES = ("Block", "Filesystem")
CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
_SOURCES = (*PERSISTENT_SOURCES, "local", "csi")


def _access_modes(modes: list[str], at: str) -> Errors:
    errors: Errors = [not_supported(at, mode, ACCESS_MODES) for mode in modes if mode not in ACCESS_MODES]
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        errors.append(forbidden_field(at, "may not use ReadWriteOncePod with other access modes"))
    return errors


class PersistentVolume(Kind):
    kind = "PersistentVolume"
    status_metadata = METADATA
    has_generation = False
    field_labels = ("name",)

    def default(self, obj: Object) -> None:
        spec, status = obj.setdefault("spec", {}), obj.setdefault("status", {})
        if not status.get("phase"):
            status["phase"] = "Pending"
        if not spec.get("persistentVolumeReclaimPolicy"):
            spec["persistentVolumeReclaimPolicy"] = "Retain"
        if spec.get("volumeMode") is None:
            spec["volumeMode"] = "Filesystem"
        volume_sources(spec)
        if spec.get("hostPath") is not None and spec["hostPath"].get("type") is None:
            spec["hostPath"]["type"] = ""

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending", "lastPhaseTransitionTime": clock.rfc3339()}

    def prepare_update(self, obj: Object, old: Object) -> None:
        obj["status"] = old.get("status") or {}

    def prepare_status(self, obj: Object, old: Object) -> None:
        super().prepare_status(obj, old)
        status, before = obj.setdefault("status", {}), old.get("status") or {}
        if status.get("phase") != before.get("phase"):
            if status.get("lastPhaseTransitionTime") in (None, before.get("lastPhaseTransitionTime")):
                status["lastPhaseTransitionTime"] = clock.rfc3339()
        elif before.get("lastPhaseTransitionTime") and not status.get("lastPhaseTransitionTime"):
            status["lastPhaseTransitionTime"] = before["lastPhaseTransitionTime"]

    def validate_create(self, obj: Object) -> list[FieldError]:
        return volume_spec(obj["spec"], obj["metadata"].get("name") or "", "spec")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj) * 2  # upstream's strategy and its update check both validate the whole
        new, before = obj["spec"], old["spec"]
        sources, were = ({k: s[k] for k in _SOURCES if k in s} for s in (new, before))
        if (before.get("csi") or {}).get("controllerExpandSecretRef") is None and "csi" in sources and "csi" in were:
            sources = {**sources, "csi": {k: v for k, v in sources["csi"].items() if k != "controllerExpandSecretRef"}}
        if sources != were:
            errors.append(
                forbidden_field("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation\n" + _source_difference(sources, were))
            )
        errors += immutable(new.get("volumeMode"), before.get("volumeMode"), "volumeMode")
        if before.get("nodeAffinity") is not None:
            errors += immutable(
                new.get("nodeAffinity"), before["nodeAffinity"], "nodeAffinity", "field is immutable, except for updating from beta label to GA"
            )
        if before.get("volumeAttributesClassName") is not None and not new.get("volumeAttributesClassName"):
            errors.append(forbidden_field("spec.volumeAttributesClassName", "update from non-nil value to nil is forbidden"))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        spec, annotations = obj["spec"], obj["metadata"].get("annotations") or {}
        out = []
        if CLASS_ANNOTATION in annotations:
            out.append(f'metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use "storageClassName" attribute instead')
        if "volume.beta.kubernetes.io/mount-options" in annotations:
            out.append('metadata.annotations[volume.beta.kubernetes.io/mount-options]: deprecated since v1.31; use "mountOptions" attribute instead')
        if spec.get("persistentVolumeReclaimPolicy") == "Recycle":
            out.append(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
            )
        for key, text in _DEPRECATED_SOURCES.items():
            if spec.get(key) is not None:
                out.append(f"spec.{key}: {text}")
        return out

    def fields(self, obj: Object) -> dict[str, str]:
        return {"name": obj["metadata"].get("name") or ""}


_DEPRECATED_SOURCES = {
    "photonPersistentDisk": "deprecated in v1.11, non-functional in v1.16+",
    "scaleIO": "deprecated in v1.16, non-functional in v1.22+",
    "storageos": "deprecated in v1.22, non-functional in v1.25+",
    "glusterfs": "deprecated in v1.25, non-functional in v1.26+",
    "rbd": "deprecated in v1.28, non-functional in v1.31+",
    "cephfs": "deprecated in v1.28, non-functional in v1.31+",
}


def volume_spec(spec: Object, name: str, at: str, inline: bool = False) -> Errors:
    """A PersistentVolumeSpec, of a volume or inline in a VolumeAttachment."""
    errors: Errors = []
    modes, capacity = spec.get("accessModes") or [], spec.get("capacity")
    if inline:
        if spec.get("claimRef") is not None:
            errors.append(forbidden_field(f"{at}.claimRef", "may not be specified in the context of inline volumes"))
        if capacity:
            errors.append(forbidden_field(f"{at}.capacity", "may not be specified in the context of inline volumes"))
        if spec.get("csi") is None:
            errors.append(required(f"{at}.csi", "has to be specified in the context of inline volumes"))
    if not modes:
        errors.append(required(f"{at}.accessModes"))
    errors += _access_modes(modes, f"{at}.accessModes")
    if not inline:
        if not capacity:
            errors.append(required(f"{at}.capacity"))
        if not capacity or "storage" not in capacity or len(capacity) > 1:
            errors.append(not_supported(f"{at}.capacity", capacity, ("storage",)))
        for resource, amount in (capacity or {}).items():
            errors += positive_quantity(amount, f"{at}.capacity[{resource}]")
    policy = spec.get("persistentVolumeReclaimPolicy")
    if policy and inline and policy != "Retain":
        errors.append(forbidden_field(f"{at}.persistentVolumeReclaimPolicy", "may only be Retain in the context of inline volumes"))
    elif policy and not inline and policy not in RECLAIM:
        errors.append(not_supported(f"{at}.persistentVolumeReclaimPolicy", policy, RECLAIM))
    required_terms = (spec.get("nodeAffinity") or {}).get("required")
    if spec.get("nodeAffinity") is not None:
        if inline:
            errors.append(forbidden_field(f"{at}.nodeAffinity", "may not be specified in the context of inline volumes"))
        elif required_terms is None:
            errors.append(required(f"{at}.nodeAffinity.required", "must specify required node constraints"))
        else:
            errors += node_selector(required_terms, f"{at}.nodeAffinity.required")
    errors += _volume_source(spec, at)
    host = spec.get("hostPath")
    if host is not None and policy == "Recycle" and (host.get("path") or "").strip("/.") == "":
        errors.append(forbidden_field(f"{at}.persistentVolumeReclaimPolicy", "may not be 'recycle' for a hostPath mount of '/'"))
    if spec.get("storageClassName"):
        if inline:
            errors.append(forbidden_field(f"{at}.storageClassName", "may not be specified in the context of inline volumes"))
        else:
            errors += rule(formats.subdomain, spec["storageClassName"], f"{at}.storageClassName")
    mode = spec.get("volumeMode")
    if mode is not None:
        if inline and mode != "Filesystem":
            errors.append(forbidden_field(f"{at}.volumeMode", "may not specify volumeMode other than Filesystem in the context of inline volumes"))
        elif not inline and mode not in VOLUME_MODES:
            errors.append(not_supported(f"{at}.volumeMode", mode, VOLUME_MODES))
    attributes = spec.get("volumeAttributesClassName")
    if attributes is not None:
        if inline:
            errors.append(forbidden_field(f"{at}.volumeAttributesClassName", "may not be specified in the context of inline volumes"))
        elif not attributes:
            errors.append(required(f"{at}.volumeAttributesClassName", "an empty string is disallowed"))
        else:
            errors += rule(formats.subdomain, attributes, f"{at}.volumeAttributesClassName")
        if spec.get("csi") is None and not inline:
            errors.append(required(f"{at}.csi", "has to be specified when using volumeAttributesClassName"))
    return errors


def _volume_source(spec: Object, at: str) -> Errors:
    errors: Errors = []
    count = 0
    for key in _SOURCES:
        source = spec.get(key)
        if source is None:
            continue
        if count:
            errors.append(forbidden_field(f"{at}.{key}", ONE_SOURCE))
            continue
        count += 1
        here = f"{at}.{key}"
        if key == "local":
            errors += [required(f"{here}.path")] if not source.get("path") else backsteps(source["path"], f"{here}.path")
            if (spec.get("nodeAffinity") or {}).get("required") is None:
                errors.append(required(f"{at}.nodeAffinity", "Local volume requires node affinity"))
        elif key == "csi":
            errors += _csi(source, here)
        else:
            errors += PERSISTENT_SOURCES[key](source, here)
    if not count:
        errors.append(required(at, "must specify a volume type"))
    return errors


def _csi(source: Object, at: str) -> Errors:
    errors = csi_driver_name(source.get("driver") or "", f"{at}.driver")
    if not source.get("volumeHandle"):
        errors.append(required(f"{at}.volumeHandle"))
    for key in ("controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef", "nodeStageSecretRef"):
        ref = source.get(key)
        if ref is not None and key != "nodeStageSecretRef":
            errors += [required(f"{at}.{key}.name")] if not ref.get("name") else rule(formats.subdomain, ref["name"], f"{at}.{key}.name")
            errors += [required(f"{at}.{key}.namespace")] if not ref.get("namespace") else rule(formats.label, ref["namespace"], f"{at}.{key}.namespace")
    return errors


# ---- claims


def default_claim(claim: Object) -> None:
    """A claim, of its own or in a StatefulSet."""
    spec, status = claim.setdefault("spec", {}), claim.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Pending"
    if spec.get("volumeMode") is None:
        spec["volumeMode"] = "Filesystem"
    spec.setdefault("resources", {})


class PersistentVolumeClaim(Kind):
    kind = "PersistentVolumeClaim"
    status_metadata = METADATA
    has_generation = False
    field_labels = ("name",)

    def default(self, obj: Object) -> None:
        default_claim(obj)

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Pending"}
        _data_sources(obj["spec"])

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        _data_sources(obj["spec"])

    def validate_create(self, obj: Object) -> list[FieldError]:
        return claim_spec(obj["spec"], "spec")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        new, before = dict(obj["spec"]), dict(old["spec"])
        if not before.get("volumeName"):
            before["volumeName"] = new.get("volumeName")
        for spec in (new, before):
            for key in [k for k, v in spec.items() if v is None or v == ""]:
                if key == "volumeName":
                    del spec[key]
        annotations, were = obj["metadata"].get("annotations") or {}, old["metadata"].get("annotations") or {}
        if CLASS_ANNOTATION in were and before.get("storageClassName") is None and new.get("storageClassName") == were[CLASS_ANNOTATION]:
            new.pop("storageClassName")
        elif annotations.get(CLASS_ANNOTATION) != were.get(CLASS_ANNOTATION):
            errors.append(invalid_value(f"metadata.annotations.{CLASS_ANNOTATION}", annotations.get(CLASS_ANNOTATION, ""), "field is immutable"))
        if (obj.get("status") or {}).get("phase") == "Bound":
            new["resources"] = _with_storage(new.get("resources") or {}, before.get("resources") or {})
            new["volumeAttributesClassName"] = before.get("volumeAttributesClassName")
            if new["volumeAttributesClassName"] is None:
                del new["volumeAttributesClassName"]
        size, was = (((s["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0") for s in (obj, old))
        if new != before:
            text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n"
            errors.append(forbidden_field("spec", text + internal.difference("core.v1.PersistentVolumeClaimSpec", new, before)))
        if quantity.compare(size, was) < 0:
            held = ((old.get("status") or {}).get("capacity") or {}).get("storage")
            if held is None or quantity.compare(size, held) <= 0:
                text = "field can not be less than status.capacity" if held is not None else "field can not be less than previous value"
                errors.append(forbidden_field("spec.resources.requests.storage", text))
        errors += immutable(obj["spec"].get("volumeMode"), old["spec"].get("volumeMode"), "volumeMode")
        if old["spec"].get("volumeAttributesClassName") is not None and obj["spec"].get("volumeAttributesClassName") is None:
            errors.append(forbidden_field("spec.volumeAttributesClassName", "update from non-nil value to nil is forbidden"))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        errors: Errors = []
        for name, amount in ((obj.get("status") or {}).get("capacity") or {}).items():
            if quantity.nanos(amount) < 0:
                errors.append(invalid_value(f"status.capacity[{name}]", quantity.value(amount), "must be a valid resource quantity"))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        out = []
        if CLASS_ANNOTATION in (obj["metadata"].get("annotations") or {}):
            out.append(f'metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use "storageClassName" attribute instead')
        return out + claim_warnings(obj["spec"], "spec")

    def fields(self, obj: Object) -> dict[str, str]:
        return {"name": obj["metadata"].get("name") or ""}


def _with_storage(new: Object, old: Object) -> Object:
    """`new` with the old one's request of storage, which bound claims may raise."""
    requests = dict(new.get("requests") or {})
    was = (old.get("requests") or {}).get("storage")
    if was is not None:
        requests["storage"] = was
    return {**new, **({"requests": requests} if requests else {})}


def _data_sources(spec: Object) -> None:
    """dataSource and dataSourceRef say the same where both can."""
    source, ref = spec.get("dataSource"), spec.get("dataSourceRef")
    if source is not None and ref is None:
        group, kind = source.get("apiGroup") or "", source.get("kind")
        if (group, kind) in (("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")):
            spec["dataSourceRef"] = dict(source)
    elif ref is not None and source is None and not ref.get("namespace"):
        group, kind = ref.get("apiGroup") or "", ref.get("kind")
        if (group, kind) in (("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")):
            spec["dataSource"] = {k: v for k, v in ref.items() if k != "namespace"}


def claim_spec(spec: Object, at: str) -> Errors:
    errors: Errors = []
    modes = spec.get("accessModes") or []
    if not modes:
        errors.append(required(f"{at}.accessModes", "at least 1 access mode is required"))
    errors += label_selector(spec.get("selector"), f"{at}.selector")
    errors += _access_modes(modes, f"{at}.accessModes")
    amount = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    errors += [required(f"{at}.resources[storage]")] if amount is None else positive_quantity(amount, f"{at}.resources[storage]")
    if spec.get("storageClassName"):
        errors += rule(formats.subdomain, spec["storageClassName"], f"{at}.storageClassName")
    mode = spec.get("volumeMode")
    if mode is not None and mode not in VOLUME_MODES:
        errors.append(not_supported(f"{at}.volumeMode", mode, VOLUME_MODES))
    for key in ("dataSource", "dataSourceRef"):
        ref = spec.get(key)
        if ref is not None:
            errors += [required(f"{at}.{key}.{k}") for k in ("name", "kind") if not ref.get(k)]
            group = ref.get("apiGroup") or ""
            if not group and ref.get("kind") != "PersistentVolumeClaim":
                errors.append(invalid_value(f"{at}.{key}", ref.get("kind") or "", "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
            if group:
                errors += rule(formats.subdomain, group, f"{at}.{key}.apiGroup")
    source, ref = spec.get("dataSource"), spec.get("dataSourceRef")
    if source is not None and ref is not None:
        if ref.get("namespace"):
            errors.append(invalid_value(f"{at}.dataSource", source, "may not be specified when dataSourceRef.namespace is specified"))
        elif any(source.get(k) != ref.get(k) for k in ("apiGroup", "kind", "name")):
            errors.append(invalid_value(at, source, "must match dataSourceRef"))
    if spec.get("volumeAttributesClassName"):
        errors += rule(formats.subdomain, spec["volumeAttributesClassName"], f"{at}.volumeAttributesClassName")
    return errors


def claim_warnings(spec: Object, at: str) -> list[str]:
    out = []
    amount = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    for key in ("requests", "limits"):
        amount = ((spec.get("resources") or {}).get(key) or {}).get("storage")
        if amount is not None and quantity.nanos(amount) % quantity.NANO:
            out.append(f'{at}.resources.{key}[storage]: fractional byte value "{amount}" is invalid, must be an integer')
    return out


def _source_difference(new: Object, old: Object) -> str:
    return internal.difference("core.v1.PersistentVolumeSpec", new, old, only=frozenset(_SOURCES))


KINDS = [PersistentVolume, PersistentVolumeClaim]
