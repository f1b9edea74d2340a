"""RBAC writes: nobody grants what he does not hold, unless he may `escalate` the role or `bind` it (upstream's policy-based RBAC storage).

Runs at the end of the mutating phase: upstream checks in the storage layer, after mutation and before validation.
"""

from __future__ import annotations

from typing import Any

from fastkube.api import errors
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin
from fastkube.server.authz import MASTERS, Authorizer
from fastkube.server.authz.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, ROLE_BINDINGS, ROLES
from fastkube.server.authz.rules import Rule, compact, text, uncovered
from fastkube.server.reader import Reader
from fastkube.server.request import AdmissionAttributes, RequestInfo

_EVERYTHING: list[Rule] = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}]


class RbacEscalation(Plugin):
    name = "RBACEscalation"

    def __init__(self, reader: Reader, authorizer: Authorizer) -> None:
        self._reader = reader
        self._authorizer = authorizer

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation in (CREATE, UPDATE) and not subresource and resource in (ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS)

    def admit(self, attributes: AdmissionAttributes) -> None:
        if MASTERS in attributes.user.groups or attributes.obj is None:
            return
        if attributes.resource in (ROLES, CLUSTER_ROLES):
            self._role(attributes, attributes.obj)
        else:
            self._binding(attributes, attributes.obj)

    def _role(self, a: AdmissionAttributes, role: dict[str, Any]) -> None:
        name = role["metadata"].get("name") or ""
        if a.old is not None and (a.old.get("rules") or []) == (role.get("rules") or []) and a.old.get("aggregationRule") == role.get("aggregationRule"):
            return
        if self._may(a, "escalate", a.resource.plural, a.namespace, name):
            return
        missing = self._missing(a, role.get("rules") or [])
        if missing:
            raise self._refusal(a, name, missing)
        if role.get("aggregationRule") and self._missing(a, _EVERYTHING):
            raise errors.forbidden(a.resource.plural, GROUP, name, "must have cluster-admin privileges to use the aggregationRule")

    def _binding(self, a: AdmissionAttributes, binding: dict[str, Any]) -> None:
        name = binding["metadata"].get("name") or ""
        reference = binding.get("roleRef") or {}
        if a.old is not None and a.old.get("roleRef") == reference and (a.old.get("subjects") or []) == (binding.get("subjects") or []):
            return
        plural = "clusterroles" if reference.get("kind") == "ClusterRole" else "roles"
        if not reference.get("name") or self._may(a, "bind", plural, a.namespace, reference["name"]):
            return
        rules = self._authorizer.rbac.rules_of(reference, a.namespace)
        if rules is None:
            raise errors.not_found(plural, GROUP, reference["name"])
        missing = self._missing(a, rules)
        if missing:
            raise self._refusal(a, name, missing)

    def _may(self, a: AdmissionAttributes, verb: str, plural: str, namespace: str, name: str) -> bool:
        return self._authorizer.authorize(a.user, RequestInfo(verb, "", True, GROUP, "v1", plural, "", namespace, name)).allowed

    def _missing(self, a: AdmissionAttributes, wanted: list[Rule]) -> list[Rule]:
        return uncovered([rule for rule, _ in self._authorizer.rbac.rules(a.user, a.namespace)], wanted)

    @staticmethod
    def _refusal(a: AdmissionAttributes, name: str, missing: list[Rule]) -> ApiError:
        lines = "".join("\n" + line for line in sorted(text(rule) for rule in compact(missing)))
        groups = " ".join(f'"{g}"' for g in a.user.groups)
        why = f'user "{a.user.name}" (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:{lines}'
        return errors.forbidden(a.resource.plural, GROUP, name, why)
