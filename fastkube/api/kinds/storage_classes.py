"""storage.k8s.io/v1: StorageClass, VolumeAttributesClass, VolumeAttachment, CSINode, CSIDriver, CSIStorageCapacity."""

from __future__ import annotations

from fastkube.api import formats, internal, quantity
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required, too_long
from fastkube.api.kinds.base import Kind, Object, null_when_empty
from fastkube.api.kinds.common import Errors, immutable, label_selector, nonnegative, rule
from fastkube.api.kinds.pod_volumes import csi_driver_name
from fastkube.api.kinds.storage import volume_spec

GROUP = "storage.k8s.io"
_PARAMETERS_MAX = 512
_PARAMETERS_BYTES_MAX = 256 * 1024
_METADATA_BYTES_MAX = 256 * 1024
_NODE_ID_BYTES_MAX = 192


def _parameters(parameters: Object | None, at: str, allow_empty: bool) -> Errors:
    parameters = parameters or {}
    errors: Errors = []
    if len(parameters) > _PARAMETERS_MAX:
        return [too_long(at, _PARAMETERS_MAX)]
    if not parameters and not allow_empty:
        return [required(at, "must contain at least one key/value pair")]
    size = 0
    for key, value in parameters.items():
        if not key:
            errors.append(invalid_value(at, key, "field can not be empty."))
        size += len(key.encode()) + len(value.encode())
    if size > _PARAMETERS_BYTES_MAX:
        errors.append(too_long(at, _PARAMETERS_BYTES_MAX))
    return errors


def _provisioner(value: str, at: str) -> Errors:
    return [required(at)] if not value else rule(formats.qualified_name, value.lower(), at)


class StorageClass(Kind):
    group = GROUP
    kind = "StorageClass"
    has_status = has_generation = False

    def default(self, obj: Object) -> None:
        if obj.get("reclaimPolicy") is None:
            obj["reclaimPolicy"] = "Delete"
        if obj.get("volumeBindingMode") is None:
            obj["volumeBindingMode"] = "Immediate"

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = _provisioner(obj.get("provisioner") or "", "provisioner") + _parameters(obj.get("parameters"), "parameters", allow_empty=True)
        policy, mode = obj.get("reclaimPolicy"), obj.get("volumeBindingMode")
        if policy and policy not in ("Delete", "Retain"):
            errors.append(not_supported("reclaimPolicy", policy, ("Delete", "Retain")))
        if mode is None:
            errors.append(required("volumeBindingMode"))
        elif mode not in ("Immediate", "WaitForFirstConsumer"):
            errors.append(not_supported("volumeBindingMode", mode, ("Immediate", "WaitForFirstConsumer")))
        return errors + _topologies(obj.get("allowedTopologies") or [])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        for key in ("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"):
            errors += immutable(obj.get(key), old.get(key), key)
        return errors


def _topologies(terms: list[Object]) -> Errors:
    errors: Errors = []
    seen: list[dict[str, frozenset[str]]] = []
    for i, term in enumerate(terms):
        at = f"allowedTopologies[{i}]"
        keys: dict[str, frozenset[str]] = {}
        for j, expression in enumerate(term.get("matchLabelExpressions") or ()):
            here = f"{at}.matchLabelExpressions[{j}]"
            values, key = expression.get("values") or [], expression.get("key") or ""
            if not values:
                errors.append(required(f"{here}.values"))
            errors += [duplicate(f"{here}.values[{k}]", v) for k, v in enumerate(values) if v in values[:k]]
            errors += rule(formats.qualified_name, key, f"{here}.key")
            if key in keys:
                errors.append(duplicate(f"{here}.key", key))
            keys[key] = frozenset(values)
        if keys in seen:
            errors.append(duplicate(f"{at}.matchLabelExpressions", ""))
        seen.append(keys)
    return errors


class VolumeAttributesClass(Kind):
    group = GROUP
    kind = "VolumeAttributesClass"
    has_status = has_generation = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        return _provisioner(obj.get("driverName") or "", "driverName") + _parameters(obj.get("parameters"), "parameters", allow_empty=False)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return [
            forbidden_field(key, f"updates to {key} are forbidden.") for key in ("driverName", "parameters") if (obj.get(key) or None) != (old.get(key) or None)
        ]


class VolumeAttachment(Kind):
    group = GROUP
    kind = "VolumeAttachment"
    has_generation = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        source = (obj.setdefault("spec", {"source": {}})).get("source") or {}
        inline = source.get("inlineVolumeSpec")
        if inline is not None:
            if not inline.get("persistentVolumeReclaimPolicy"):
                inline["persistentVolumeReclaimPolicy"] = "Retain"
            if inline.get("volumeMode") is None:
                inline["volumeMode"] = "Filesystem"

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors = _attacher(spec.get("attacher") or "", "spec.attacher") + self._source(spec.get("source") or {}, "spec.source")
        errors += rule(formats.subdomain, spec.get("nodeName") or "", "spec.nodeName")
        errors += self._status(obj.get("status") or {})
        name = (spec.get("source") or {}).get("persistentVolumeName")
        if name is not None:
            errors += rule(formats.subdomain, name, "spec.source.persistentVolumeName")
        return errors

    def _source(self, source: Object, at: str) -> Errors:
        inline, name = source.get("inlineVolumeSpec"), source.get("persistentVolumeName")
        if inline is None and name is None:
            return [required(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")]
        if inline is not None and name is not None:
            return [forbidden_field(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")]
        if inline is not None:
            return volume_spec(inline, "", f"{at}.inlineVolumeSpec", inline=True)
        return [required(f"{at}.persistentVolumeName", "must specify non empty persistentVolumeName")] if not name else []

    def _status(self, status: Object) -> Errors:
        errors: Errors = []
        metadata = status.get("attachmentMetadata") or {}
        if sum(len(k.encode()) + len(v.encode()) for k, v in metadata.items()) > _METADATA_BYTES_MAX:
            errors.append(too_long("status.attachmentMetadata", _METADATA_BYTES_MAX))
        for key in ("attachError", "detachError"):
            if len(((status.get(key) or {}).get("message") or "").encode()) > _METADATA_BYTES_MAX:
                errors.append(too_long(f"status.{key}.message", _METADATA_BYTES_MAX))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        if obj.get("spec") != old.get("spec"):
            errors.append(invalid_value("spec", internal.view("storage.v1.VolumeAttachmentSpec", obj.get("spec")), "field is immutable"))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return self._status(obj.get("status") or {})


def _attacher(value: str, at: str) -> Errors:
    return csi_driver_name(value, at)


class CSINode(Kind):
    group = GROUP
    kind = "CSINode"
    has_status = has_generation = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {"drivers": None})

    def prepare_create(self, obj: Object) -> None:
        null_when_empty(obj["spec"], "drivers")

    def prepare_update(self, obj: Object, old: Object) -> None:
        null_when_empty(obj["spec"], "drivers")

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        names: set[str] = set()
        for i, driver in enumerate(obj["spec"].get("drivers") or ()):
            errors += self._driver(driver, names, f"spec.drivers[{i}]")
        return errors

    def _driver(self, driver: Object, names: set[str], at: str) -> Errors:
        name, node, keys = driver.get("name") or "", driver.get("nodeID") or "", driver.get("topologyKeys") or []
        errors = csi_driver_name(name, f"{at}.name")
        if not node:
            errors.append(required(f"{at}.nodeID"))
        elif len(node.encode()) > _NODE_ID_BYTES_MAX:
            errors.append(invalid_value(f"{at}.nodeID", node, f"must be {_NODE_ID_BYTES_MAX} characters or less"))
        errors += nonnegative((driver.get("allocatable") or {}).get("count"), f"{at}.allocatable.count")
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
        seen: set[str] = set()
        for key in keys:
            if not key:
                errors.append(required(at))
            if key in seen:
                errors.append(duplicate(at, key))
            seen.add(key)
            errors += [invalid_value(at, key, m) for m in formats.qualified_name(key)]
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        new = {d.get("name"): d for d in obj["spec"].get("drivers") or ()}
        for driver in old["spec"].get("drivers") or ():
            changed = new.get(driver.get("name"))
            if changed is not None and {k: v for k, v in changed.items() if k != "allocatable"} != {k: v for k, v in driver.items() if k != "allocatable"}:
                errors.append(invalid_value("CSINodeDriver", internal.view("storage.v1.CSINodeDriver", changed), "field is immutable"))
        return errors


_LIFECYCLE = ("Persistent", "Ephemeral")
_FS_GROUP = ("File", "None", "ReadWriteOnceWithFSType")
_DRIVER_MUTABLE = (
    "podInfoOnMount",
    "fsGroupPolicy",
    "tokenRequests",
    "requiresRepublish",
    "seLinuxMount",
    "storageCapacity",
    "nodeAllocatableUpdatePeriodSeconds",
    "serviceAccountTokenInSecrets",
)


class CSIDriver(Kind):
    group = GROUP
    kind = "CSIDriver"
    has_status = has_generation = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        for key, value in (
            ("attachRequired", True),
            ("podInfoOnMount", False),
            ("storageCapacity", False),
            ("fsGroupPolicy", "ReadWriteOnceWithFSType"),
            ("requiresRepublish", False),
            ("seLinuxMount", False),
        ):
            if spec.get(key) is None:
                spec[key] = value
        if not spec.get("volumeLifecycleModes"):
            spec["volumeLifecycleModes"] = ["Persistent"]

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        name = obj["metadata"].get("name") or ""
        errors: Errors = [FieldError("FieldValueTooLong", "name", "Too long: may not be more than 63 bytes")] if len(name.encode()) > 63 else []
        policy = spec.get("fsGroupPolicy")
        if policy is not None and policy not in _FS_GROUP:
            errors.append(not_supported("spec.fsGroupPolicy", policy, _FS_GROUP))
        audiences: set[str] = set()
        for i, request in enumerate(spec.get("tokenRequests") or ()):
            at, audience, seconds = f"spec.tokenRequests[{i}]", request.get("audience") or "", request.get("expirationSeconds")
            if audience in audiences:
                errors.append(duplicate(f"{at}.audience", audience))
            audiences.add(audience)
            if seconds is not None and seconds < 600:
                errors.append(invalid_value(f"{at}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"))
            if seconds is not None and seconds > 1 << 32:
                errors.append(invalid_value(f"{at}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"))
        errors += [not_supported("spec.volumeLifecycleModes", mode, _LIFECYCLE) for mode in spec.get("volumeLifecycleModes") or () if mode not in _LIFECYCLE]
        period = spec.get("nodeAllocatableUpdatePeriodSeconds")
        if period is not None and period < 10:
            errors.append(invalid_value("spec.nodeAllocatableUpdatePeriodSeconds", period, "must be greater than or equal to 10"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        for key in ("attachRequired", "volumeLifecycleModes"):
            errors += immutable(obj["spec"].get(key), old["spec"].get(key), f"spec.{key}")
        return errors


class CSIStorageCapacity(Kind):
    group = GROUP
    kind = "CSIStorageCapacity"
    has_status = has_generation = False
    unconditional_update = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = rule(formats.subdomain, obj.get("storageClassName") or "", "storageClassName")
        errors += label_selector(obj.get("nodeTopology"), "nodeTopology")
        for key in ("capacity", "maximumVolumeSize"):
            if obj.get(key) is not None and quantity.nanos(obj[key]) < 0:
                errors.append(invalid_value(key, obj[key], "must be greater than or equal to 0"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        for key in ("nodeTopology", "storageClassName"):
            if obj.get(key) != old.get(key):
                errors.append(invalid_value(key, obj.get(key), "field is immutable"))
        return errors


KINDS = [StorageClass, VolumeAttributesClass, VolumeAttachment, CSINode, CSIDriver, CSIStorageCapacity]
