"""Default classes for claims and ingresses, finalizers that protect storage in use, and who may resize a claim."""

from __future__ import annotations

from fastkube.api import quantity, resources
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin, forbidden, is_a
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

STORAGE_CLASSES = resources.parse("storage.k8s.io/v1/storageclasses")
INGRESS_CLASSES = resources.parse("networking.k8s.io/v1/ingressclasses")
_DEFAULT_STORAGE = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
_DEFAULT_INGRESS = ("ingressclass.kubernetes.io/is-default-class",)
_CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
_INGRESS_ANNOTATION = "kubernetes.io/ingress.class"
_FINALIZERS = {
    "persistentvolumeclaims": "kubernetes.io/pvc-protection",
    "persistentvolumes": "kubernetes.io/pv-protection",
    "volumeattributesclasses": "kubernetes.io/vac-protection",
}


def newest_default(reader: Reader, resource: Resource, annotations: tuple[str, ...]) -> Object | None:
    """The class marked as default; of several the youngest, then the first by name."""
    marked = [c for c in reader.list(resource) if any((c["metadata"].get("annotations") or {}).get(a) == "true" for a in annotations)]
    marked.sort(key=lambda c: c["metadata"]["name"])
    return max(marked, key=lambda c: c["metadata"].get("creationTimestamp", ""), default=None)


class DefaultStorageClass(Plugin):
    name = "DefaultStorageClass"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and not subresource and is_a(resource, "", "persistentvolumeclaims")

    def admit(self, attributes: AdmissionAttributes) -> None:
        claim = attributes.obj
        if claim is None or claim["spec"].get("storageClassName") is not None or _CLASS_ANNOTATION in (claim["metadata"].get("annotations") or {}):
            return
        default = newest_default(self._reader, STORAGE_CLASSES, _DEFAULT_STORAGE)
        if default is not None:
            claim["spec"]["storageClassName"] = default["metadata"]["name"]


class DefaultIngressClass(Plugin):
    name = "DefaultIngressClass"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and not subresource and is_a(resource, "networking.k8s.io", "ingresses")

    def admit(self, attributes: AdmissionAttributes) -> None:
        ingress = attributes.obj
        if (
            ingress is None
            or (ingress.get("spec") or {}).get("ingressClassName") is not None
            or _INGRESS_ANNOTATION in (ingress["metadata"].get("annotations") or {})
        ):
            return
        default = newest_default(self._reader, INGRESS_CLASSES, _DEFAULT_INGRESS)
        if default is not None:
            ingress.setdefault("spec", {})["ingressClassName"] = default["metadata"]["name"]


class StorageObjectInUseProtection(Plugin):
    """A finalizer, so that a claim goes only after its pods, and a volume after its claim."""

    name = "StorageObjectInUseProtection"

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and not subresource and resource.plural in _FINALIZERS and resource.group in ("", "storage.k8s.io")

    def admit(self, attributes: AdmissionAttributes) -> None:
        if attributes.obj is None:
            return
        meta, finalizer = attributes.obj["metadata"], _FINALIZERS[attributes.resource.plural]
        if finalizer not in (meta.get("finalizers") or ()):
            meta["finalizers"] = [*(meta.get("finalizers") or ()), finalizer]


class PersistentVolumeClaimResize(Plugin):
    name = "PersistentVolumeClaimResize"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == UPDATE and not subresource and is_a(resource, "", "persistentvolumeclaims")

    def validate(self, attributes: AdmissionAttributes) -> None:
        new, old = attributes.obj, attributes.old
        if new is None or old is None or _size(new) <= _size(old):
            return
        if (old.get("status") or {}).get("phase") != "Bound":
            raise forbidden(attributes, "Only bound persistent volume claims can be expanded")
        name = (old["metadata"].get("annotations") or {}).get(_CLASS_ANNOTATION) or old["spec"].get("storageClassName")
        found = self._reader.get(STORAGE_CLASSES, None, name) if name else None
        if found is None or not found.get("allowVolumeExpansion"):
            raise forbidden(attributes, "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")


def _size(claim: Object) -> int:
    text = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")
    return quantity.nanos(text) if text else 0
