"""ValidatingAdmissionPolicy: rules in CEL, bound to what they hold for, with parameters (KEP-3488).

Policies and bindings are followed by the store's changes; a write that none is for costs a dictionary look-up. An expression that fails counts as the
policy's failurePolicy says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from fastkube.api import resources, selectors
from fastkube.api.errors import ApiError
from fastkube.api.resources import Resource
from fastkube.server.admission.expressions import ExpressionError, evaluate
from fastkube.server.admission.matching import GROUP, NAMESPACES, any_rule, exempt, request_of, selected
from fastkube.server.admission.plugin import Plugin, forbidden
from fastkube.server.authz import Authorizer
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes

POLICIES = resources.parse(f"{GROUP}/v1/validatingadmissionpolicies")
BINDINGS = resources.parse(f"{GROUP}/v1/validatingadmissionpolicybindings")
PARAMS_MAX = 100  # parameter objects of one binding that are looked at
_CODES = {"Unauthorized": 401, "Forbidden": 403, "RequestEntityTooLarge": 413, "Invalid": 422}
_USED = re.compile(r"\bvariables\.([A-Za-z_][A-Za-z0-9_]*)")


class Verdict:
    """What one binding says against a write."""

    __slots__ = ("binding", "message", "policy", "reason")

    def __init__(self, policy: Object, binding: Object, message: str, reason: str) -> None:
        self.policy, self.binding, self.message, self.reason = policy, binding, message, reason

    def text(self, what: str) -> str:
        return f"ValidatingAdmissionPolicy '{self.policy['metadata']['name']}' with binding '{self.binding['metadata']['name']}' {what}: {self.message}"


class ValidatingAdmissionPolicy(Plugin):
    name = "ValidatingAdmissionPolicy"

    def __init__(self, reader: Reader, authorizer: Authorizer, find: Callable[[str, str, str], Resource | None]) -> None:
        """`find(group, version, kind)` names the resource that parameters are of."""
        self._reader, self._authorizer, self._find = reader, authorizer, find
        self._bound: list[tuple[Object, Object]] = []
        self._dirty = True
        for resource in (POLICIES, BINDINGS):
            reader.on_change(resource, self._changed)

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return resource.group != GROUP

    def validate(self, attributes: AdmissionAttributes) -> None:
        if self._dirty:
            self._load()
        if not self._bound or exempt(attributes):
            return
        denied: list[Verdict] = []
        failures: list[dict[str, Any]] = []
        for policy, binding in self._bound:
            if not self._concerned(policy, binding, attributes):
                continue
            actions = binding["spec"].get("validationActions") or ()
            for verdict in self._judge(policy, binding, attributes):
                if "Warn" in actions:
                    names = f"'{policy['metadata']['name']}' with binding '{binding['metadata']['name']}'"
                    attributes.warnings.append(f"Validation failed for ValidatingAdmissionPolicy {names}: {verdict.message}")
                if "Audit" in actions:
                    failures.append(
                        {"message": verdict.message, "policy": policy["metadata"]["name"], "binding": binding["metadata"]["name"], "validationActions": actions}
                    )
                if "Deny" in actions:
                    denied.append(verdict)
        if failures:
            attributes.annotations["validation.policy.admission.k8s.io/validation_failure"] = orjson.dumps(failures).decode()
        if denied:
            raise _refusal(attributes, denied)

    def _changed(self, new: Object | None, old: Object | None) -> None:
        self._dirty = True

    def _load(self) -> None:
        policies = {p["metadata"]["name"]: p for p in self._reader.list(POLICIES)}
        self._bound = [(policies[b["spec"]["policyName"]], b) for b in self._reader.list(BINDINGS) if b["spec"].get("policyName") in policies]
        self._dirty = False

    def _concerned(self, policy: Object, binding: Object, attributes: AdmissionAttributes) -> bool:
        for match, rules_needed in ((policy["spec"].get("matchConstraints"), True), (binding["spec"].get("matchResources"), False)):
            if match is None:
                continue
            equivalent = match.get("matchPolicy", "Equivalent") == "Equivalent"
            rules = match.get("resourceRules") or ()
            if (rules or rules_needed) and not any_rule(rules, attributes, equivalent):
                return False
            if any_rule(match.get("excludeResourceRules") or (), attributes, equivalent) or not selected(self._reader, match, attributes):
                return False
        return policy["spec"].get("matchConstraints") is not None

    # -- judging ------------------------------------------------------------------------------------------------------------------------------

    def _judge(self, policy: Object, binding: Object, attributes: AdmissionAttributes) -> Iterator[Verdict]:
        ignore = policy["spec"].get("failurePolicy", "Fail") == "Ignore"
        try:
            for params in self._params(policy, binding, attributes):
                yield from self._judge_with(policy, binding, attributes, params, ignore)
        except ExpressionError as e:
            if not ignore:
                yield Verdict(policy, binding, str(e), "Invalid")

    def _judge_with(self, policy: Object, binding: Object, attributes: AdmissionAttributes, params: Object | None, ignore: bool) -> Iterator[Verdict]:
        scope = Scope(policy, attributes, params, self._reader, self._authorizer)
        if not self._applies(policy, scope):
            return
        for validation in policy["spec"].get("validations") or ():
            try:
                held = scope.value(validation["expression"])
            except ExpressionError as e:
                if not ignore:
                    yield Verdict(policy, binding, f"expression '{validation['expression']}' resulted in error: {e}", validation.get("reason") or "Invalid")
                continue
            if held is not True:
                yield Verdict(policy, binding, scope.message(validation), validation.get("reason") or "Invalid")
        for annotation in policy["spec"].get("auditAnnotations") or ():
            try:
                value = scope.value(annotation["valueExpression"])
            except ExpressionError:
                continue
            if isinstance(value, str):
                attributes.annotations[f"{policy['metadata']['name']}/{annotation['key']}"] = value

    @staticmethod
    def _applies(policy: Object, scope: Scope) -> bool:
        """All match conditions hold. A failing one counts only when none says no."""
        problem: ExpressionError | None = None
        for condition in policy["spec"].get("matchConditions") or ():
            try:
                if scope.value(condition["expression"]) is not True:
                    return False
            except ExpressionError as e:
                problem = e
        if problem is not None:
            raise problem
        return True

    def _params(self, policy: Object, binding: Object, attributes: AdmissionAttributes) -> Iterator[Object | None]:
        """The parameter objects to judge with, one after the other; None when the policy takes none."""
        kind, reference = policy["spec"].get("paramKind"), binding["spec"].get("paramRef")
        if not kind or not reference:
            yield None
            return
        group, _, version = kind.get("apiVersion", "").rpartition("/")
        resource = self._find(group, version, kind.get("kind", ""))
        if resource is None:
            raise ExpressionError(
                f"failed to configure binding: failed to find resource referenced by paramKind: '{kind.get('apiVersion')}, Kind={kind.get('kind')}'"
            )
        namespace = (reference.get("namespace") or attributes.namespace) if resource.namespaced else None
        if reference.get("name"):
            stored = self._reader.get(resource, namespace, reference["name"])
            found = [stored] if stored is not None else []
        else:
            selector = selectors.from_object(reference.get("selector"))
            found = [o for o in self._reader.list(resource, namespace) if selector.matches(o["metadata"].get("labels") or {})][:PARAMS_MAX]
        if not found and reference.get("parameterNotFoundAction") != "Allow":
            raise ExpressionError("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction")
        yield from found


class Scope:
    """The data of one judgement; variables are worked out when an expression first names them."""

    def __init__(self, policy: Object, attributes: AdmissionAttributes, params: Object | None, reader: Reader, authorizer: Authorizer) -> None:
        self._expressions = {v["name"]: v["expression"] for v in policy["spec"].get("variables") or ()}
        self._attributes, self._authorizer = attributes, authorizer
        self._variables: dict[str, Any] = {}
        resource = attributes.resource
        requested = {
            "group": resource.group,
            "resource": resource.plural,
            "subresource": attributes.subresource,
            "namespace": attributes.namespace,
            "name": attributes.name,
        }
        namespace = reader.get(NAMESPACES, None, attributes.namespace) if resource.namespaced else None
        self._data: dict[str, Any] = {
            "object": attributes.obj, "oldObject": attributes.old, "request": request_of(attributes), "params": params, "namespaceObject": namespace,
            "variables": self._variables, "authorizer": {"requestResource": requested},
        }  # fmt: skip

    def value(self, text: str) -> Any:
        """Raises ExpressionError."""
        for name in _USED.findall(text):
            if name in self._expressions and name not in self._variables:
                self._variables[name] = self.value(self._expressions[name])
        return evaluate(text, self._data, self._authorizer, self._attributes.user)

    def message(self, validation: Object) -> str:
        if validation.get("messageExpression"):
            try:
                said = self.value(validation["messageExpression"])
            except ExpressionError:
                said = None
            if isinstance(said, str) and said.strip() and "\n" not in said:
                return said
        return validation.get("message") or f"failed expression: {validation['expression'].strip()}"


def _refusal(attributes: AdmissionAttributes, denied: list[Verdict]) -> ApiError:
    texts = [verdict.text("denied request") for verdict in denied]
    error = forbidden(attributes, texts[0])
    error.reason = denied[0].reason
    error.code = _CODES.get(error.reason, 422)
    error.details = {**(error.details or {}), "causes": [{"message": text} for text in texts]}
    return error
