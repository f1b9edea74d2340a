"""ServiceAccount: every pod runs as one, and finds its token, the cluster's authority and its namespace in a volume (KEP-1205, KEP-2799)."""

from __future__ import annotations

import asyncio
from typing import Any

from fastkube.api import resources
from fastkube.api.resources import Resource
from fastkube.runtime import entropy
from fastkube.server.admission.plugin import CREATE, UPDATE, Answer, Plugin, forbidden, is_a
from fastkube.server.authn.serviceaccounts import EXTENDED_ASKED_SECONDS
from fastkube.server.authz.node import MIRROR, pod_references
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

SERVICE_ACCOUNTS = resources.parse("v1/serviceaccounts")
DEFAULT_WAIT_SECONDS = 2.0  # how long a pod waits for the default account of its new namespace
MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUME_PREFIX = "kube-api-access-"
ENFORCE_MOUNTABLE = "kubernetes.io/enforce-mountable-secrets"


class ServiceAccount(Plugin):
    name = "ServiceAccount"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._waiting: dict[tuple[str, str], asyncio.Event] = {}
        reader.on_change(SERVICE_ACCOUNTS, self._changed)

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return is_a(resource, "", "pods") and ((operation == CREATE and not subresource) or (operation == UPDATE and subresource == "ephemeralcontainers"))

    def admit(self, attributes: AdmissionAttributes) -> Answer:
        pod = attributes.obj
        if attributes.operation != CREATE or pod is None or is_mirror(pod):
            return None
        spec = pod["spec"]
        if not spec.get("serviceAccountName"):
            spec["serviceAccountName"] = spec["serviceAccount"] = "default"
        account = self._reader.get(SERVICE_ACCOUNTS, attributes.namespace, spec["serviceAccountName"])
        if account is None:
            return self._admit_later(attributes, pod)
        mount(pod, account)
        return None

    async def _admit_later(self, attributes: AdmissionAttributes, pod: Object) -> None:
        mount(pod, await self._account(attributes, pod["spec"]["serviceAccountName"]))

    def validate(self, attributes: AdmissionAttributes) -> Answer:
        pod = attributes.obj
        if pod is None:
            return None
        if is_mirror(pod):
            _refuse_mirror(attributes, pod)
            return None
        account = self._reader.get(SERVICE_ACCOUNTS, attributes.namespace, pod["spec"].get("serviceAccountName") or "default")
        if account is None:
            if attributes.operation == CREATE:
                raise _missing(attributes, pod["spec"].get("serviceAccountName") or "default")
            return None
        if (account["metadata"].get("annotations") or {}).get(ENFORCE_MOUNTABLE) == "true":
            _hold_to_mountable(attributes, pod, account)
        return None

    async def _account(self, attributes: AdmissionAttributes, name: str) -> Object:
        """The account; the default one of a namespace is waited for: a controller makes it just after the namespace."""
        key = (attributes.namespace, name)
        if name == "default":
            event = self._waiting.setdefault(key, asyncio.Event())
            try:
                async with asyncio.timeout(DEFAULT_WAIT_SECONDS):
                    await event.wait()
            except TimeoutError:
                self._waiting.pop(key, None)
        account = self._reader.get(SERVICE_ACCOUNTS, *key)
        if account is None:
            raise _missing(attributes, name)
        return account

    def _changed(self, new: Object | None, old: Object | None) -> None:
        if self._waiting and new is not None:
            event = self._waiting.pop((new["metadata"]["namespace"], new["metadata"]["name"]), None)
            if event is not None:
                event.set()


def _missing(attributes: AdmissionAttributes, name: str) -> Exception:
    return forbidden(attributes, f'error looking up service account {attributes.namespace}/{name}: serviceaccount "{name}" not found')


def is_mirror(pod: Object) -> bool:
    return MIRROR in (pod["metadata"].get("annotations") or {})


def mount(pod: Object, account: Object) -> None:
    """Pull secrets and the token volume of `account` into `pod`."""
    spec = pod["spec"]
    if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
        spec["imagePullSecrets"] = [{"name": s.get("name", "")} for s in account["imagePullSecrets"]]
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        wanted = account.get("automountServiceAccountToken")
    if wanted is False:
        return
    volumes = spec.get("volumes") or []
    existing = next((v["name"] for v in volumes if v.get("name", "").startswith(VOLUME_PREFIX)), None)
    name = existing or _unused_name({v.get("name") for v in volumes})
    needed = False
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            mounts = container.get("volumeMounts") or []
            if not any(m.get("mountPath") == MOUNT_PATH for m in mounts):
                container["volumeMounts"] = [*mounts, {"name": name, "readOnly": True, "mountPath": MOUNT_PATH}]
                needed = True
    if needed and not existing:
        spec["volumes"] = [*volumes, token_volume(name)]


def _unused_name(taken: set[Any]) -> str:
    while (name := VOLUME_PREFIX + entropy.suffix()) in taken:
        pass
    return name


def token_volume(name: str) -> Object:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return {
        "name": name,
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": EXTENDED_ASKED_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [namespace]}},
            ],
            "defaultMode": 0o644,
        },
    }


def _refuse_mirror(attributes: AdmissionAttributes, pod: Object) -> None:
    spec = pod["spec"]
    if spec.get("serviceAccountName"):
        raise forbidden(attributes, "a mirror pod may not reference service accounts")
    if any(_secrets(pod)):
        raise forbidden(attributes, "a mirror pod may not reference secrets")
    for volume in spec.get("volumes") or ():
        if any(s.get("serviceAccountToken") for s in (volume.get("projected") or {}).get("sources") or ()):
            raise forbidden(attributes, "a mirror pod may not use ServiceAccountToken volume projections")


def _secrets(pod: Object) -> set[str]:
    bare = {**pod, "metadata": {**pod["metadata"], "namespace": "", "name": "", "annotations": {}}}
    return {name for plural, _, name in pod_references(bare) if plural == "secrets"}


def _hold_to_mountable(attributes: AdmissionAttributes, pod: Object, account: Object) -> None:
    """A service account may say that its pods use no secrets but those it lists (deprecated annotation)."""
    mountable = {s.get("name") for s in account.get("secrets") or ()}
    pulls = {s.get("name") for s in account.get("imagePullSecrets") or ()}
    name = account["metadata"]["name"]
    for secret in pod["spec"].get("imagePullSecrets") or ():
        if secret.get("name") not in pulls:
            raise forbidden(
                attributes,
                f'imagePullSecrets[0].name="{secret.get("name")}" is not allowed because service account {name} does not reference that imagePullSecret',
            )
    for volume in pod["spec"].get("volumes") or ():
        secret = (volume.get("secret") or {}).get("secretName")
        if secret and secret not in mountable:
            raise forbidden(
                attributes, f'volume with secret.secretName="{secret}" is not allowed because service account {name} does not reference that secret'
            )
    for field, word in (("initContainers", "init container"), ("containers", "container"), ("ephemeralContainers", "ephemeral container")):
        for container in pod["spec"].get(field) or ():
            _hold_container(attributes, container, word, name, mountable)


def _hold_container(attributes: AdmissionAttributes, container: Object, word: str, account: str, mountable: set[Any]) -> None:
    for variable in container.get("env") or ():
        secret = ((variable.get("valueFrom") or {}).get("secretKeyRef") or {}).get("name")
        if secret and secret not in mountable:
            raise forbidden(
                attributes,
                f'{word} {container["name"]} with envVar {variable["name"]} referencing secret.secretName="{secret}" is not allowed because service account {account} does not reference that secret',
            )
    for source in container.get("envFrom") or ():
        secret = (source.get("secretRef") or {}).get("name")
        if secret and secret not in mountable:
            raise forbidden(
                attributes,
                f'{word} {container["name"]} with envFrom referencing secret.secretName="{secret}" is not allowed because service account {account} does not reference that secret',
            )
