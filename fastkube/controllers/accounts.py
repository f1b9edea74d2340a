"""serviceaccount-controller and root-ca-certificate-publisher-controller: what every namespace holds from its first moment."""

from __future__ import annotations

from fastkube.api.errors import ApiError
from fastkube.client.informer import split_key
from fastkube.controllers.meta import Object, deleting
from fastkube.controllers.runtime import Controller

DEFAULT_ACCOUNT = "default"
ROOT_CA = "kube-root-ca.crt"
ROOT_CA_ANNOTATIONS = {
    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or "
    "kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
}


class _EveryNamespace(Controller):
    """Base: reconcile is called with a namespace's name, whenever it or the object in it changes."""

    def setup(self) -> None:
        self.namespaces = self.informer("v1/namespaces")
        self.namespaces.add_handler(self._namespace, lambda old, new: self._namespace(new))

    def _namespace(self, namespace: Object) -> None:
        self.queue.add(namespace["metadata"]["name"])

    def _inside(self, obj: Object) -> None:
        self.queue.add(obj["metadata"]["namespace"])

    def _active(self, name: str) -> bool:
        namespace = self.namespaces.get(None, name)
        return namespace is not None and not deleting(namespace)

    async def _create(self, resource: str, obj: Object, namespace: str) -> None:
        try:
            await self.client.create(resource, obj, namespace)
        except ApiError as e:
            gone = e.code == 404 or any(c.get("reason") == "NamespaceTerminating" for c in (e.details or {}).get("causes") or ())
            if e.reason != "AlreadyExists" and not gone:
                raise


class ServiceAccountController(_EveryNamespace):
    name = "serviceaccount-controller"
    account = "service-account-controller"

    def setup(self) -> None:
        super().setup()
        self.accounts = self.informer("v1/serviceaccounts", fields=f"metadata.name={DEFAULT_ACCOUNT}")
        self.accounts.add_handler(on_delete=self._inside)

    async def reconcile(self, key: str) -> float | None:
        if self._active(key) and self.accounts.get(key, DEFAULT_ACCOUNT) is None:
            await self._create(
                "v1/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": DEFAULT_ACCOUNT, "namespace": key}}, key
            )
        return None


class RootCAPublisher(_EveryNamespace):
    name = "root-ca-certificate-publisher-controller"
    account = "root-ca-cert-publisher"

    def setup(self) -> None:
        super().setup()
        self.maps = self.informer("v1/configmaps", fields=f"metadata.name={ROOT_CA}")
        self.maps.add_handler(on_update=lambda old, new: self._inside(new), on_delete=self._inside)

    async def reconcile(self, key: str) -> float | None:
        if not self.options.root_ca or not self._active(key):
            return None
        data = {"ca.crt": self.options.root_ca.decode()}
        stored = self.maps.get(key, ROOT_CA)
        if stored is None:
            meta = {"name": ROOT_CA, "namespace": split_key(key)[1], "annotations": ROOT_CA_ANNOTATIONS}
            await self._create("v1/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}, key)
        elif stored.get("data") != data:
            meta = {**stored["metadata"], "annotations": {**(stored["metadata"].get("annotations") or {}), **ROOT_CA_ANNOTATIONS}}
            await self.client.update("v1/configmaps", {**stored, "metadata": meta, "data": data})
        return None
