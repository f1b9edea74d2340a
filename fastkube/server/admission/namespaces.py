"""NamespaceLifecycle: no content for a namespace that is not there or is going, and three namespaces that never go."""

from __future__ import annotations

from fastkube.api import errors, resources
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CONNECT, CREATE, DELETE, Plugin, forbidden
from fastkube.server.reader import Reader
from fastkube.server.request import AdmissionAttributes

NAMESPACES = resources.parse("v1/namespaces")
IMMORTAL = frozenset(("default", "kube-system", "kube-public"))


class NamespaceLifecycle(Plugin):
    name = "NamespaceLifecycle"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        if resource is NAMESPACES:
            return operation == DELETE
        return operation not in (DELETE, CONNECT) and resource.namespaced and resource.plural != "localsubjectaccessreviews"

    def admit(self, attributes: AdmissionAttributes) -> None:
        if attributes.operation == DELETE:
            if attributes.name in IMMORTAL:
                raise forbidden(attributes, "this namespace may not be deleted")
            return
        namespace = self._reader.get(NAMESPACES, None, attributes.namespace)
        if namespace is None:
            raise errors.not_found("namespaces", "", attributes.namespace)
        if attributes.operation == CREATE and (namespace.get("status") or {}).get("phase") == "Terminating":
            error = forbidden(attributes, f"unable to create new content in namespace {attributes.namespace} because it is being terminated")
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {attributes.namespace} is being terminated", "field": "metadata.namespace"}
            error.details = {**(error.details or {}), "causes": [cause]}
            raise error
