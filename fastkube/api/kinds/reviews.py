"""authentication.k8s.io and authorization.k8s.io: the review kinds, which are answered and never stored. Their answers are the API server's."""

from __future__ import annotations

from typing import Any

from fastkube.api.errors import FieldError, forbidden_field, invalid_value
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors

_ONE_OF = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
_NOT_BOTH = "cannot be specified in combination with resourceAttributes"


class _AccessReview(Kind):
    group = "authorization.k8s.io"
    has_status = has_generation = False

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})

    def _attributes(self, spec: Object) -> Errors:
        resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if resource is not None and other is not None:
            return [invalid_value("spec.nonResourceAttributes", other, _NOT_BOTH)]
        return [invalid_value("spec.resourceAttributes", None, _ONE_OF)] if resource is None and other is None else []

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = self._attributes(obj["spec"])
        resource = obj["spec"].get("resourceAttributes") or {}
        return errors + _selector(resource)


def _selector(resource: Object) -> Errors:
    errors: Errors = []
    for key in ("fieldSelector", "labelSelector"):
        selector = resource.get(key)
        if selector is None:
            continue
        at, raw, listed = f"spec.resourceAttributes.{key}", selector.get("rawSelector"), selector.get("requirements")
        if raw and listed:
            errors.append(invalid_value(f"{at}.rawSelector", raw, "may not specified at the same time as requirements"))
        if not raw and not listed:
            from fastkube.api.errors import required

            errors.append(
                required(
                    f"{at}.requirements",
                    "when fieldSelector is specified, requirements or rawSelector is required"
                    if key == "fieldSelector"
                    else "when labelSelector is specified, requirements or rawSelector is required",
                )
            )
    return errors


class SelfSubjectAccessReview(_AccessReview):
    kind = "SelfSubjectAccessReview"


class SubjectAccessReview(_AccessReview):
    kind = "SubjectAccessReview"

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = super().validate_create(obj)
        spec = obj["spec"]
        if not spec.get("user") and not spec.get("groups"):
            errors.append(invalid_value("spec.user", spec.get("user") or "", "at least one of user or group must be specified"))
        return errors


class LocalSubjectAccessReview(SubjectAccessReview):
    kind = "LocalSubjectAccessReview"

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = super().validate_create(obj)
        resource, namespace = obj["spec"].get("resourceAttributes"), obj["metadata"].get("namespace") or ""
        if resource is not None and (resource.get("namespace") or "") != namespace:
            errors.append(invalid_value("spec.resourceAttributes.namespace", resource.get("namespace") or "", "must match metadata.namespace"))
        if obj["spec"].get("nonResourceAttributes") is not None:
            errors.append(forbidden_field("spec.nonResourceAttributes", "disallowed on this kind of request"))
        return errors


class SelfSubjectRulesReview(Kind):
    group = "authorization.k8s.io"
    kind = "SelfSubjectRulesReview"
    has_status = has_generation = False


class TokenReview(Kind):
    group = "authentication.k8s.io"
    kind = "TokenReview"
    has_status = has_generation = False

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {})


class SelfSubjectReview(Kind):
    group = "authentication.k8s.io"
    kind = "SelfSubjectReview"
    has_status = has_generation = False


KINDS: list[Any] = [SelfSubjectAccessReview, SubjectAccessReview, LocalSubjectAccessReview, SelfSubjectRulesReview, TokenReview, SelfSubjectReview]
