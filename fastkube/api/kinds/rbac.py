"""rbac.authorization.k8s.io/v1: Role, ClusterRole and their bindings. (Escalation checks are the API server's: they need to know who asks.)"""

from __future__ import annotations

from fastkube.api import formats, internal
from fastkube.api.errors import FieldError, invalid_value, not_supported, required
from fastkube.api.kinds.base import Kind, Object, null_when_empty
from fastkube.api.kinds.common import Errors, label_selector, rule

GROUP = "rbac.authorization.k8s.io"


class Role(Kind):
    group = GROUP
    kind = "Role"
    has_status = has_generation = False
    name_rule = "path"

    def prepare_create(self, obj: Object) -> None:
        null_when_empty(obj, "rules")

    def prepare_update(self, obj: Object, old: Object) -> None:
        null_when_empty(obj, "rules")

    def validate_create(self, obj: Object) -> list[FieldError]:
        return _rules(obj.get("rules") or [], namespaced=True)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


def _rules(rules: list[Object], namespaced: bool) -> Errors:
    errors: Errors = []
    for i, item in enumerate(rules):
        at = f"rules[{i}]"
        if not item.get("verbs"):
            errors.append(required(f"{at}.verbs", "verbs must contain at least one value"))
        if item.get("nonResourceURLs"):
            if namespaced:
                errors.append(invalid_value(f"{at}.nonResourceURLs", item["nonResourceURLs"], "namespaced rules cannot apply to non-resource URLs"))
            if item.get("apiGroups") or item.get("resources") or item.get("resourceNames"):
                errors.append(
                    invalid_value(f"{at}.nonResourceURLs", item["nonResourceURLs"], "rules cannot apply to both regular resources and non-resource URLs")
                )
            continue
        if not item.get("apiGroups"):
            errors.append(required(f"{at}.apiGroups", "resource rules must supply at least one api group"))
        if not item.get("resources"):
            errors.append(required(f"{at}.resources", "resource rules must supply at least one resource"))
    return errors


class ClusterRole(Role):
    kind = "ClusterRole"

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = _rules(obj.get("rules") or [], namespaced=False)
        aggregation = obj.get("aggregationRule")
        if aggregation is not None:
            at = "aggregationRule.clusterRoleSelectors"
            selectors = aggregation.get("clusterRoleSelectors") or []
            if not selectors:
                errors.append(required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
            for i, selector in enumerate(selectors):
                errors += label_selector(selector, f"{at}[{i}]")
        return errors


_SUBJECTS = ("ServiceAccount", "User", "Group")


class RoleBinding(Kind):
    group = GROUP
    kind = "RoleBinding"
    has_status = has_generation = False
    name_rule = "path"
    namespaced = True
    role_kinds: tuple[str, ...] = ("Role", "ClusterRole")

    def default(self, obj: Object) -> None:
        ref = obj.setdefault("roleRef", {})
        if not ref.get("apiGroup"):
            ref["apiGroup"] = GROUP
        ref.setdefault("kind", "")
        ref.setdefault("name", "")
        for subject in obj.get("subjects") or ():
            if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
                subject["apiGroup"] = GROUP

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        ref = obj.get("roleRef") or {}
        if ref.get("apiGroup") != GROUP:
            errors.append(not_supported("roleRef.apiGroup", ref.get("apiGroup") or "", (GROUP,)))
        if ref.get("kind") not in self.role_kinds:
            errors.append(not_supported("roleRef.kind", ref.get("kind") or "", self.role_kinds))
        name = ref.get("name") or ""
        errors += [required("roleRef.name")] if not name else rule(formats.path_segment, name, "roleRef.name")
        for i, subject in enumerate(obj.get("subjects") or ()):
            errors += self._subject(subject, f"subjects[{i}]")
        return errors

    def _subject(self, subject: Object, at: str) -> Errors:
        errors: Errors = []
        kind, name, group = (subject.get(k) or "" for k in ("kind", "name", "apiGroup"))
        if not name:
            errors.append(required(f"{at}.name"))
        if kind == "ServiceAccount":
            if name:
                errors += rule(formats.subdomain, name, f"{at}.name")
            if group:
                errors.append(not_supported(f"{at}.apiGroup", group, ("",)))
            if not subject.get("namespace") and not self.namespaced:
                errors.append(required(f"{at}.namespace"))
        elif kind in ("User", "Group"):
            if group != GROUP:
                errors.append(not_supported(f"{at}.apiGroup", group, (GROUP,)))
        else:
            errors.append(not_supported(f"{at}.kind", kind, _SUBJECTS))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_create(obj)
        if obj.get("roleRef") != old.get("roleRef"):
            errors.append(invalid_value("roleRef", internal.view("rbac.v1.RoleRef", obj.get("roleRef")), "cannot change roleRef"))
        return errors


class ClusterRoleBinding(RoleBinding):
    kind = "ClusterRoleBinding"
    namespaced = False
    role_kinds = ("ClusterRole",)


KINDS = [Role, ClusterRole, RoleBinding, ClusterRoleBinding]
