"""Validation of a pod's volumes (upstream: ValidateVolumes of pkg/apis/core/validation), shared with PersistentVolumes where sources are alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastkube.api import formats, quantity
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.common import Errors, enum, rule
from fastkube.api.meta import validate_annotations, validate_labels

Object = dict[str, Any]

FILE_MODE = "must be a number between 0 and 0777 (octal), both inclusive"
ABSOLUTE = "must be an absolute path"
ONE_SOURCE = "may not specify more than 1 volume type"
_POD_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations")
_CONTAINER_RESOURCES = ("limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory")


def backsteps(path: str, field: str) -> Errors:
    return [invalid_value(field, path, "must not contain '..'")] if ".." in path.split("/") else []


def relative_path(path: str, field: str) -> Errors:
    """A path inside a volume: not absolute, no `..`."""
    errors = [invalid_value(field, path, "must be a relative path")] if path.startswith("/") else []
    return errors + backsteps(path, field)


def local_path(path: str, field: str) -> Errors:
    """A file of a volume: relative, and its name does not begin with `..`."""
    errors = relative_path(path, field)
    if path.startswith("..") and not path.startswith("../") and path != "..":
        errors.append(invalid_value(field, path, "must not start with '..'"))
    return errors


def mode(value: int | None, field: str) -> Errors:
    return [invalid_value(field, value, FILE_MODE)] if value is not None and not 0 <= value <= 0o777 else []


def validate(volumes: list[Object] | None, pod_name: str, field: str) -> tuple[dict[str, Object], Errors]:
    """-> (sound volumes by name, errors)."""
    errors: Errors = []
    found: dict[str, Object] = {}
    for i, volume in enumerate(volumes or ()):
        at = f"{field}[{i}]"
        name = volume.get("name") or ""
        bad = _source(volume, at, name, pod_name)
        if not name:
            bad.append(required(f"{at}.name"))
        elif messages := formats.label(name):
            bad += [invalid_value(f"{at}.name", name, m) for m in messages]
        elif name in found:
            bad.append(duplicate(f"{at}.name", name))
        if bad:
            errors += bad
        else:
            found[name] = volume
    return found, errors


def _source(volume: Object, at: str, name: str, pod_name: str) -> Errors:
    given = [key for key in volume if key in _SOURCES and volume[key] is not None]
    if len(given) > 1:
        given.sort(key=_ORDER.__getitem__)
    elif not given:
        return [required(at, "must specify a volume type")]
    key = given[0]
    source = volume[key]
    errors = _SOURCES[key](source, f"{at}.{key}")
    errors += [forbidden_field(f"{at}.{_SPELLED.get(more, more)}", ONE_SOURCE) for more in given[1:]]
    if key == "iscsi" and len(f"{source.get('iscsiInterface', '')}:{name}".encode()) > 64 and source.get("initiatorName"):
        text = "Total length of <iscsi interface>:<volume name> must be under 64 characters if iscsi.initiatorName is specified."
        errors.append(invalid_value(f"{at}.name", name, text))
    if key == "ephemeral" and pod_name and name:
        claim = f"{pod_name}-{name}"
        errors += [invalid_value(f"{at}.name", name, f'PVC name "{claim}": {m}') for m in formats.subdomain(claim)]
    return errors


_SPELLED = {"downwardAPI": "downwarAPI", "cephfs": "cephFS"}  # sic


def _need(source: Object, at: str, *keys: str) -> Errors:
    return [required(f"{at}.{key}") for key in keys if not source.get(key)]


def _empty_dir(source: Object, at: str) -> Errors:
    limit = source.get("sizeLimit")
    if limit is not None and quantity.nanos(limit) < 0:
        return [forbidden_field(f"{at}.sizeLimit", "SizeLimit field must be a valid resource quantity")]
    return []


HOST_PATH_TYPES = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")


def host_path(source: Object, at: str) -> Errors:
    path = source.get("path") or ""
    if not path:
        return [required(f"{at}.path")]
    errors = backsteps(path, f"{at}.path")
    kind = source.get("type")
    if kind is not None and kind not in HOST_PATH_TYPES:
        errors.append(not_supported(f"{at}.type", kind, HOST_PATH_TYPES))
    return errors


def _key_to_path(item: Object, at: str) -> Errors:
    return _need(item, at, "key", "path") + (local_path(item["path"], f"{at}.path") if item.get("path") else []) + mode(item.get("mode"), f"{at}.mode")


def _items(source: Object, at: str) -> Errors:
    return [e for i, item in enumerate(source.get("items") or ()) for e in _key_to_path(item, f"{at}.items[{i}]")]


def _secret(source: Object, at: str) -> Errors:
    return _need(source, at, "secretName") + mode(source.get("defaultMode"), f"{at}.defaultMode") + _items(source, at)


def _config_map(source: Object, at: str) -> Errors:
    return _need(source, at, "name") + mode(source.get("defaultMode"), f"{at}.defaultMode") + _items(source, at)


def field_selector(ref: Object, at: str, supported: tuple[str, ...]) -> Errors:
    """An ObjectFieldSelector whose path is one of `supported` (in upstream's order: sorted)."""
    errors: Errors = []
    if not ref.get("apiVersion"):
        return [required(f"{at}.apiVersion")]
    path = ref.get("fieldPath") or ""
    if path in supported:
        return errors
    if not path:
        return [required(f"{at}.fieldPath")]
    bare, subscript = split_subscript(path)
    if not known_field(bare):
        return [invalid_value(f"{at}.fieldPath", path, f"error converting fieldPath: field label not supported: {path if subscript is None else bare}")]
    if subscript is not None:
        if bare == "metadata.annotations":
            errors += [invalid_value(at, subscript, m) for m in formats.qualified_name(subscript.lower())]
        elif bare == "metadata.labels":
            errors += [invalid_value(at, subscript, m) for m in formats.qualified_name(subscript)]
        else:
            errors.append(invalid_value(at, bare, "does not support subscript"))
    elif bare not in supported:
        errors.append(not_supported(f"{at}.fieldPath", bare, supported))
    return errors


_SUBSCRIPT = re.compile(r"(.+)\['(.*)'\]").fullmatch
_KNOWN_FIELDS = frozenset({
    *_POD_FIELDS, "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.hostIP", "status.hostIPs",
    "status.podIP", "status.podIPs", "status.nominatedNodeName", "spec.host",
})  # fmt: skip


def split_subscript(path: str) -> tuple[str, str | None]:
    """`metadata.labels['a']` -> ("metadata.labels", "a")."""
    m = _SUBSCRIPT(path)
    return (m[1], m[2]) if m else (path, None)


def known_field(path: str) -> bool:
    return path in _KNOWN_FIELDS


def resource_selector(ref: Object, at: str, volume: bool) -> Errors:
    """A ResourceFieldSelector."""
    if volume and not ref.get("containerName"):
        return [required(f"{at}.containerName")]
    name = ref.get("resource") or ""
    if not name:
        return [required(f"{at}.resource")]
    if name not in _CONTAINER_RESOURCES and not name.startswith(("limits.hugepages-", "requests.hugepages-")):
        return [not_supported(f"{at}.resource", name, _CONTAINER_RESOURCES)]
    return _divisor(name, ref.get("divisor"), at)


_BYTES_DIVISORS = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")


def _divisor(name: str, divisor: str | None, at: str) -> Errors:
    if divisor in (None, "0"):
        return []
    what = name.partition(".")[2]
    if what == "cpu":
        return [] if divisor in ("1m", "1") else [invalid_value(f"{at}.divisor", name, "only divisor's values 1m and 1 are supported with the cpu resource")]
    label = {"memory": "memory", "ephemeral-storage": "local ephemeral storage"}.get(what, "hugepages")
    if divisor in _BYTES_DIVISORS:
        return []
    return [invalid_value(f"{at}.divisor", name, f"only divisor's values {', '.join(_BYTES_DIVISORS)} are supported with the {label} resource")]


def _downward_file(item: Object, at: str) -> Errors:
    errors: Errors = []
    path = item.get("path") or ""
    if not path:
        errors.append(required(f"{at}.path"))
    errors += local_path(path, f"{at}.path")
    if item.get("fieldRef") is not None:
        errors += field_selector(item["fieldRef"], f"{at}.fieldRef", tuple(sorted(_POD_FIELDS)))
        if item.get("resourceFieldRef") is not None:
            errors.append(invalid_value(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
    elif item.get("resourceFieldRef") is not None:
        errors += resource_selector(item["resourceFieldRef"], f"{at}.resourceFieldRef", volume=True)
    else:
        errors.append(required(at, "one of fieldRef and resourceFieldRef is required"))
    return errors + mode(item.get("mode"), f"{at}.mode")


def _downward(source: Object, at: str) -> Errors:
    errors = mode(source.get("defaultMode"), f"{at}.defaultMode")
    # Upstream names the items' path without an index.
    return errors + [e for item in source.get("items") or () for e in _downward_file(item, at)]


def _projected(source: Object, at: str) -> Errors:
    errors = mode(source.get("defaultMode"), f"{at}.defaultMode")
    paths: set[str] = set()

    def place(path: str, what: str) -> None:
        if path:
            if path in paths:
                errors.append(invalid_value(at, what, "conflicting duplicate paths"))
            paths.add(path)

    for i, projection in enumerate(source.get("sources") or ()):
        here = f"{at}.sources[{i}]"
        if sum(projection.get(key) is not None for key in _PROJECTIONS) > 1:
            errors.append(forbidden_field(here, ONE_SOURCE))
        for key in ("secret", "configMap"):
            part = projection.get(key)
            if part is not None:
                if not part.get("name"):
                    errors.append(required(f"{here}.{key}.name"))
                for j, item in enumerate(part.get("items") or ()):
                    errors += _key_to_path(item, f"{here}.{key}.items[{j}]")
                    place(item.get("path") or "", part.get("name") or "")
        for item in (projection.get("downwardAPI") or {}).get("items") or ():
            errors += _downward_file(item, f"{here}.downwardAPI")
            place(item.get("path") or "", item.get("path") or "")
        if (part := projection.get("serviceAccountToken")) is not None:
            errors += _token(part, f"{here}.serviceAccountToken", at)
            place(part.get("path") or "", part.get("path") or "")
        if (part := projection.get("clusterTrustBundle")) is not None:
            errors += _trust_bundle(part, f"{here}.clusterTrustBundle")
            place(part.get("path") or "", part.get("path") or "")
        if (part := projection.get("podCertificate")) is not None:
            errors += _pod_certificate(part, f"{here}.podCertificate")
            for file in ("credentialBundlePath", "keyPath", "certificateChainPath"):
                place(part.get(file) or "", part.get(file) or "")
    return errors


_PROJECTIONS = ("secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate")


def _token(part: Object, at: str, outer: str) -> Errors:
    errors: Errors = []
    seconds = part.get("expirationSeconds", 3600)
    if seconds < 600:
        errors.append(invalid_value(f"{at}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"))
    if seconds > 1 << 32:
        errors.append(invalid_value(f"{at}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"))
    path = part.get("path") or ""
    if not path:
        errors.append(required(f"{outer}.path"))
    else:
        errors += local_path(path, f"{outer}.path")
    return errors


def _trust_bundle(part: Object, at: str) -> Errors:
    errors: Errors = []
    name, signer = part.get("name"), part.get("signerName")
    if name is not None and signer is not None:
        errors.append(invalid_value(at, part, "only one of name and signerName may be used"))
    elif name is None and signer is None:
        errors.append(required(at, "either name or signerName must be specified"))
    path = part.get("path") or ""
    return errors + ([required(f"{at}.path")] if not path else local_path(path, f"{at}.path"))


_KEY_TYPES = ("ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096")


def _pod_certificate(part: Object, at: str) -> Errors:
    errors: Errors = [] if part.get("signerName") else [required(f"{at}.signerName")]
    if part.get("keyType") not in _KEY_TYPES:
        errors.append(not_supported(f"{at}.keyType", part.get("keyType") or "", _KEY_TYPES))
    given = [k for k in ("credentialBundlePath", "keyPath", "certificateChainPath") if part.get(k)]
    if not given:
        errors.append(required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"))
    return errors + [e for k in given for e in local_path(part[k], f"{at}.{k}")]


def _claim(source: Object, at: str) -> Errors:
    return _need(source, at, "claimName")


def nfs(source: Object, at: str) -> Errors:
    errors = _need(source, at, "server", "path")
    path = source.get("path") or ""
    if not path.startswith("/"):
        errors.append(invalid_value(f"{at}.path", path, ABSOLUTE))
    return errors


def csi_driver_name(name: str, at: str) -> Errors:
    if not name:
        return [required(at)]
    errors = [FieldError("FieldValueTooLong", at, "Too long: may not be more than 63 bytes")] if len(name.encode()) > 63 else []
    return errors + [invalid_value(at, name, m) for m in formats.subdomain(name.lower())]


def _csi(source: Object, at: str) -> Errors:
    errors = csi_driver_name(source.get("driver") or "", f"{at}.driver")
    secret = source.get("nodePublishSecretRef")
    if secret is not None and not secret.get("name"):
        errors.append(required(f"{at}.nodePublishSecretRef.name"))
    return errors


def _ephemeral(source: Object, at: str) -> Errors:
    from fastkube.api.kinds.storage import claim_spec

    template = source.get("volumeClaimTemplate")
    if template is None:
        return [required(f"{at}.volumeClaimTemplate")]
    here = f"{at}.volumeClaimTemplate"
    meta = template.get("metadata") or {}
    errors = validate_annotations(meta.get("annotations"), f"{here}.metadata.annotations") + validate_labels(meta.get("labels"), f"{here}.metadata.labels")
    errors += [forbidden_field(f"{here}.metadata.{key}", "cannot be set for an ephemeral volume") for key in meta if key not in ("annotations", "labels")]
    return errors + claim_spec(template.get("spec") or {}, f"{here}.spec")


def _image(source: Object, at: str) -> Errors:
    errors = _need(source, at, "reference")
    return errors + enum(source.get("pullPolicy"), f"{at}.pullPolicy", ("Always", "IfNotPresent", "Never"), need=False)


_IQN = re.compile(r"iqn\.\d{4}-\d{2}\.([a-zA-Z0-9-.]+)(:([^,;*&$|\s]+))?")
_EUI = re.compile(r"eui\.([a-fA-F0-9]{16})")
_NAA = re.compile(r"naa\.([a-fA-F0-9]{16}|[a-fA-F0-9]{32})")


def _iscsi_name(value: str, at: str, first: str = "must be valid format starting with iqn, eui, or naa") -> Errors:
    if not value.startswith(("iqn", "eui", "naa")):
        return [invalid_value(at, value, first)]
    pattern = {"iqn": _IQN, "eui": _EUI, "naa": _NAA}[value[:3]]
    return [] if pattern.fullmatch(value) else [invalid_value(at, value, "must be valid format")]


def iscsi(source: Object, at: str) -> Errors:
    errors = _need(source, at, "targetPortal", "iqn")
    if source.get("iqn"):
        errors += _iscsi_name(source["iqn"], f"{at}.iqn")
    if not 0 <= source.get("lun", 0) <= 255:
        errors.append(invalid_value(f"{at}.lun", source["lun"], formats.in_range(0, 255)))
    if (source.get("chapAuthDiscovery") or source.get("chapAuthSession")) and source.get("secretRef") is None:
        errors.append(required(f"{at}.secretRef"))
    if source.get("initiatorName") is not None:
        errors += _iscsi_name(source["initiatorName"], f"{at}.initiatorname")
    return errors


def _fc(source: Object, at: str) -> Errors:
    wwns, wwids = source.get("targetWWNs") or [], source.get("wwids") or []
    errors: Errors = []
    if not wwns and not wwids:
        errors.append(required(f"{at}.targetWWNs", "must specify either targetWWNs or wwids, but not both"))
    if wwns and wwids:
        errors.append(invalid_value(f"{at}.targetWWNs", wwns, "targetWWNs and wwids can not be specified simultaneously"))
    if wwns:
        if source.get("lun") is None:
            errors.append(required(f"{at}.lun", "lun is required if targetWWNs is specified"))
        elif not 0 <= source["lun"] <= 255:
            errors.append(invalid_value(f"{at}.lun", source["lun"], formats.in_range(0, 255)))
    return errors


def _partitioned(key: str) -> Callable[[Object, str], Errors]:
    def check(source: Object, at: str) -> Errors:
        errors = _need(source, at, key)
        if not 0 <= source.get("partition", 0) <= 255:
            errors.append(invalid_value(f"{at}.partition", source["partition"], formats.in_range(1, 255)))
        return errors

    return check


def _needs(*keys: str) -> Callable[[Object, str], Errors]:
    return lambda source, at: _need(source, at, *keys)


def _quobyte(source: Object, at: str) -> Errors:
    errors: Errors = []
    registry = source.get("registry") or ""
    words = "must be a host:port pair or multiple pairs separated by commas"
    if not registry:
        errors.append(required(f"{at}.registry", words))
    elif len((source.get("tenant") or "").encode()) >= 65:
        errors.append(required(f"{at}.tenant", "must be a UUID and may not exceed a length of 64 characters"))
    else:
        errors += [invalid_value(f"{at}.registry", registry, words) for pair in registry.split(",") if not re.fullmatch(r"(\[[^\]]*\]|[^:]*):[^:]*", pair)]
    return errors + _need(source, at, "volume")


def _azure_disk(source: Object, at: str) -> Errors:
    errors = _need(source, at, "diskName", "diskURI")
    caching = source.get("cachingMode")
    if caching is not None and caching not in ("None", "ReadOnly", "ReadWrite"):
        errors.append(not_supported(f"{at}.cachingMode", caching, ("None", "ReadOnly", "ReadWrite")))
    kind, uri = source.get("kind"), source.get("diskURI") or ""
    if kind is not None and kind not in ("Dedicated", "Managed", "Shared"):
        errors.append(not_supported(f"{at}.kind", kind, ("Dedicated", "Managed", "Shared")))
    if kind is not None and kind != "Managed" and not uri.startswith("https://"):
        errors.append(not_supported(f"{at}.diskURI", uri, ("https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",)))
    if kind == "Managed" and not uri.startswith("/subscriptions"):
        errors.append(not_supported(f"{at}.diskURI", uri, ("/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",)))
    return errors


def _storageos(source: Object, at: str) -> Errors:
    errors: Errors = []
    if not source.get("volumeName"):
        errors.append(required(f"{at}.volumeName"))
    else:
        errors += rule(formats.label, source["volumeName"], f"{at}.volumeName")
    if source.get("volumeNamespace"):
        errors += rule(formats.label, source["volumeNamespace"], f"{at}.volumeNamespace")
    if source.get("secretRef") is not None:
        errors += _need(source["secretRef"], f"{at}.secretRef", "name")
    return errors


def _flocker(source: Object, at: str) -> Errors:
    name, uuid = source.get("datasetName"), source.get("datasetUUID")
    errors: Errors = []
    if not name and not uuid:
        errors.append(required(at, "one of datasetName and datasetUUID is required"))
    if name and uuid:
        errors.append(invalid_value(at, "resource", "datasetName and datasetUUID can not be specified simultaneously"))
    if name and "/" in name:
        errors.append(invalid_value(f"{at}.datasetName", name, "must not contain '/'"))
    return errors


def _git_repo(source: Object, at: str) -> Errors:
    return _need(source, at, "repository") + local_path(source.get("directory") or "", f"{at}.directory")


def _scale_io(source: Object, at: str) -> Errors:
    return _need(source, at, "gateway", "system", "volumeName")


# In the order upstream looks at them: the first given one is checked, each further one is one too many.
_SOURCES: dict[str, Callable[[Object, str], Errors]] = {
    "emptyDir": _empty_dir,
    "hostPath": host_path,
    "gitRepo": _git_repo,
    "gcePersistentDisk": _partitioned("pdName"),
    "awsElasticBlockStore": _partitioned("volumeID"),
    "secret": _secret,
    "nfs": nfs,
    "iscsi": iscsi,
    "glusterfs": _needs("endpoints", "path"),
    "flocker": _flocker,
    "persistentVolumeClaim": _claim,
    "rbd": _needs("monitors", "image"),
    "cinder": _needs("volumeID"),
    "cephfs": _needs("monitors"),
    "quobyte": _quobyte,
    "downwardAPI": _downward,
    "fc": _fc,
    "flexVolume": _needs("driver"),
    "configMap": _config_map,
    "azureFile": _needs("secretName", "shareName"),
    "vsphereVolume": _needs("volumePath"),
    "photonPersistentDisk": _needs("pdID"),
    "portworxVolume": _needs("volumeID"),
    "azureDisk": _azure_disk,
    "storageos": _storageos,
    "projected": _projected,
    "scaleIO": _scale_io,
    "csi": _csi,
    "ephemeral": _ephemeral,
    "image": _image,
}
_ORDER = {key: i for i, key in enumerate(_SOURCES)}
PERSISTENT_SOURCES = {
    key: _SOURCES[key]
    for key in (
        "hostPath", "gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "flocker", "nfs", "rbd", "quobyte", "cephfs", "iscsi", "cinder", "fc", "flexVolume", "azureFile",
        "vsphereVolume", "photonPersistentDisk", "portworxVolume", "azureDisk", "scaleIO", "storageos",
    )
}  # fmt: skip
