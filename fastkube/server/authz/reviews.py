"""The SubjectAccessReview family: what may X do. Created, never stored: the object comes back with its status.

`answer(plural, user, namespace, obj)` fills `obj` in place and returns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastkube.api import errors
from fastkube.api.errors import FieldError
from fastkube.server.authz import Authorizer
from fastkube.server.authz.node import node_name
from fastkube.server.authz.rules import Rule
from fastkube.server.reader import Object
from fastkube.server.request import RequestInfo, User

GROUP = "authorization.k8s.io"


class Reviews:
    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._answers: dict[str, Callable[[User, str, Object], Object]] = {
            "subjectaccessreviews": self._subject,
            "localsubjectaccessreviews": self._local,
            "selfsubjectaccessreviews": self._self,
            "selfsubjectrulesreviews": self._rules,
        }

    def answer(self, plural: str, user: User, namespace: str, obj: Object) -> Object:
        """Raises ApiError; KeyError when `plural` is none of these."""
        return self._answers[plural](user, namespace, obj)

    def _subject(self, user: User, namespace: str, obj: Object) -> Object:
        spec = obj.get("spec") or {}
        _refuse(_spec_problems(spec) + _subject_problems(spec))
        return self._decide(_asked_user(spec), spec, obj)

    def _local(self, user: User, namespace: str, obj: Object) -> Object:
        spec = obj.get("spec") or {}
        problems = _spec_problems(spec) + _subject_problems(spec)
        attributes = spec.get("resourceAttributes")
        if attributes is not None and attributes.get("namespace", "") != namespace:
            problems.append(errors.invalid_value("spec.resourceAttributes.namespace", attributes.get("namespace", ""), "must match metadata.namespace"))
        if spec.get("nonResourceAttributes") is not None:
            problems.append(errors.invalid_value("spec.nonResourceAttributes", spec["nonResourceAttributes"], "disallowed on this kind of request"))
        _refuse(problems)
        return self._decide(_asked_user(spec), spec, obj)

    def _self(self, user: User, namespace: str, obj: Object) -> Object:
        spec = obj.get("spec") or {}
        _refuse(_spec_problems(spec))
        return self._decide(user, spec, obj)

    def _decide(self, user: User, spec: Object, obj: Object) -> Object:
        decision = self._authorizer.authorize(user, _asked_info(spec))
        status: Object = {"allowed": decision.allowed}
        if decision.denied:
            status["denied"] = True
        if decision.reason:
            status["reason"] = decision.reason
        if decision.error:
            status["evaluationError"] = decision.error
        obj["status"] = status
        return obj

    def _rules(self, user: User, namespace: str, obj: Object) -> Object:
        asked = (obj.get("spec") or {}).get("namespace") or ""
        if not asked:
            raise errors.bad_request("no namespace on request")
        resource_rules: list[Rule] = []
        other_rules: list[Rule] = []
        for rule, _ in self._authorizer.rbac.rules(user, asked):
            if rule.get("resources"):
                resource_rules.append({k: rule[k] for k in ("verbs", "apiGroups", "resources", "resourceNames") if rule.get(k)})
            if rule.get("nonResourceURLs"):
                other_rules.append({k: rule[k] for k in ("verbs", "nonResourceURLs")})
        status: dict[str, Any] = {"resourceRules": resource_rules, "nonResourceRules": other_rules, "incomplete": False}
        problems = list(self._authorizer.rbac.missing_roles(user, asked))
        if node_name(user) is not None:
            problems.append("node authorizer does not support user rule resolution")
        if problems:
            status["incomplete"] = True
            status["evaluationError"] = ", ".join(problems)
        obj["status"] = status
        return obj


def _spec_problems(spec: Object) -> list[FieldError]:
    resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and other is not None:
        return [errors.invalid_value("spec.nonResourceAttributes", other, "cannot be specified in combination with resourceAttributes")]
    if resource is None and other is None:
        return [errors.invalid_value("spec.resourceAttributes", None, "exactly one of nonResourceAttributes or resourceAttributes must be specified")]
    return []


def _subject_problems(spec: Object) -> list[FieldError]:
    if spec.get("user") or spec.get("groups"):
        return []
    return [errors.invalid_value("spec.user", "", "at least one of user or group must be specified")]


def _refuse(problems: list[FieldError]) -> None:
    if problems:
        raise errors.invalid("", GROUP, "", problems)


def _asked_user(spec: Object) -> User:
    extra = {key.lower(): tuple(values) for key, values in (spec.get("extra") or {}).items()}
    return User(spec.get("user") or "", tuple(spec.get("groups") or ()), spec.get("uid") or "", extra)


def _asked_info(spec: Object) -> RequestInfo:
    a = spec.get("resourceAttributes")
    if a is None:
        other = spec["nonResourceAttributes"]
        return RequestInfo(other.get("verb") or "", other.get("path") or "")
    info = RequestInfo(a.get("verb") or "", "", True, a.get("group") or "", a.get("version") or "", a.get("resource") or "", a.get("subresource") or "")
    info.namespace, info.name = a.get("namespace") or "", a.get("name") or ""
    info.field_selector = _selector((a.get("fieldSelector") or {}), "key")
    return info


def _selector(selector: Object, key: str) -> str:
    """Field requirements as a selector's text; only equality means something to an authorizer."""
    if selector.get("rawSelector"):
        return selector["rawSelector"]
    return ",".join(f"{r[key]}={r['values'][0]}" for r in selector.get("requirements") or () if r.get("operator") == "In" and len(r.get("values") or ()) == 1)
