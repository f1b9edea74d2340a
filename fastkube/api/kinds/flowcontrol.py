"""flowcontrol.apiserver.k8s.io/v1: FlowSchema and PriorityLevelConfiguration."""

from __future__ import annotations

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors, rule

GROUP = "flowcontrol.apiserver.k8s.io"
_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch")
_PRECEDENCE_MAX = 10000
_QUEUES_MAX = 10_000_000


def _status(obj: Object) -> Errors:
    errors: Errors = []
    seen: set[str] = set()
    for i, condition in enumerate((obj.get("status") or {}).get("conditions") or ()):
        if condition.get("type") in seen:
            errors.append(duplicate(f"status.conditions[{i}].type", condition.get("type")))
        seen.add(condition.get("type") or "")
        if not condition.get("type"):
            errors.append(required(f"status.conditions[{i}].type"))
    return errors


class FlowSchema(Kind):
    group = GROUP
    kind = "FlowSchema"

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {"priorityLevelConfiguration": {"name": ""}})
        if not spec.get("matchingPrecedence"):
            spec["matchingPrecedence"] = 1000

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors: Errors = []
        precedence, level = spec.get("matchingPrecedence", 0), (spec.get("priorityLevelConfiguration") or {}).get("name") or ""
        if precedence <= 0:
            errors.append(invalid_value("spec.matchingPrecedence", precedence, "must be a positive value"))
        if precedence > _PRECEDENCE_MAX:
            errors.append(invalid_value("spec.matchingPrecedence", precedence, f"must not be greater than {_PRECEDENCE_MAX}"))
        if precedence == 1 and obj["metadata"].get("name") != "exempt":
            errors.append(invalid_value("spec.matchingPrecedence", precedence, "only the schema named 'exempt' may have matchingPrecedence 1"))
        method = spec.get("distinguisherMethod")
        if method is not None and method.get("type") not in ("ByNamespace", "ByUser"):
            errors.append(not_supported("spec.distinguisherMethod.type", {"Type": method.get("type") or ""}, ("ByNamespace", "ByUser")))
        if not level:
            errors.append(required("spec.priorityLevelConfiguration.name", "must reference a priority level"))
        else:
            errors += rule(formats.subdomain, level, "spec.priorityLevelConfiguration.name")
        for i, item in enumerate(spec.get("rules") or ()):
            errors += _rule(item, f"spec.rules[{i}]")
        return errors + _status(obj)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return _status(obj)


def _rule(item: Object, at: str) -> Errors:
    errors: Errors = []
    if not item.get("subjects"):
        errors.append(required(f"{at}.subjects", "subjects must contain at least one value"))
    for i, subject in enumerate(item.get("subjects") or ()):
        errors += _subject(subject, f"{at}.subjects[{i}]")
    resources, others = item.get("resourceRules") or [], item.get("nonResourceRules") or []
    if not resources and not others:
        errors.append(required(at, "at least one of resourceRules and nonResourceRules has to be non-empty"))
    for i, entry in enumerate(resources):
        errors += _resource_rule(entry, f"{at}.resourceRules[{i}]")
    for i, entry in enumerate(others):
        errors += _url_rule(entry, f"{at}.nonResourceRules[{i}]")
    return errors


_SUBJECTS = {"ServiceAccount": "serviceAccount", "User": "user", "Group": "group"}
_SUBJECT_KINDS = ("Group", "ServiceAccount", "User")


def _subject(subject: Object, at: str) -> Errors:
    kind = subject.get("kind") or ""
    own = _SUBJECTS.get(kind)
    if own is None:
        return [not_supported(f"{at}.kind", kind, _SUBJECT_KINDS)]
    ref = subject.get(own)
    errors: Errors = []
    here = f"{at}.{own}"
    if ref is None:
        errors.append(required(here, f"{own} is required when subject kind is '{kind}'"))
    elif not ref.get("name"):
        errors.append(required(f"{here}.name"))
    elif own == "serviceAccount" and ref["name"] != "*":
        errors += rule(formats.subdomain, ref["name"], f"{here}.name")
    if ref is not None and own == "serviceAccount":
        namespace = ref.get("namespace") or ""
        errors += (
            [required(f"{here}.namespace", "must specify namespace for service account")]
            if not namespace
            else rule(formats.label, namespace, f"{here}.namespace")
        )
    for name, field in _SUBJECTS.items():
        if field != own and subject.get(field) is not None:
            errors.append(forbidden_field(f"{at}.{field}", f"{field} is forbidden when subject kind is not '{name}'"))
    return errors


def _verbs(verbs: list[str], at: str) -> Errors:
    if not verbs:
        return [required(at, "verbs must contain at least one value")]
    if "*" in verbs:
        return [invalid_value(at, verbs, "if '*' is present, must not specify other verbs")] if len(verbs) > 1 else []
    return [] if set(verbs) <= set(_VERBS) else [not_supported(at, verbs, _VERBS)]


def _resource_rule(entry: Object, at: str) -> Errors:
    errors = _verbs(entry.get("verbs") or [], f"{at}.verbs")
    for key, one, more in (("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")):
        values = entry.get(key) or []
        if not values:
            errors.append(required(f"{at}.{key}", f"resource rules must supply at least one {one}"))
        elif len(values) > 1 and "*" in values:
            errors.append(invalid_value(f"{at}.{key}", values, f"if '*' is present, must not specify other {more}"))
    namespaces = entry.get("namespaces") or []
    if not namespaces and not entry.get("clusterScope"):
        errors.append(required(f"{at}.namespaces", "resource rules that are not cluster scoped must supply at least one namespace"))
    elif "*" in namespaces:
        if len(namespaces) > 1:
            errors.append(invalid_value(f"{at}.namespaces", namespaces, "if '*' is present, must not specify other namespaces"))
    else:
        for i, namespace in enumerate(namespaces):
            errors += [
                invalid_value(f"{at}.namespaces[{i}]", namespace, f"each member of this list must be '*' or a DNS-1123 label; {m}")
                for m in formats.label(namespace)
            ]
    return errors


def _url_rule(entry: Object, at: str) -> Errors:
    errors = _verbs(entry.get("verbs") or [], f"{at}.verbs")
    urls = entry.get("nonResourceURLs") or []
    if not urls:
        return [*errors, required(f"{at}.nonResourceURLs", "nonResourceURLs must contain at least one value")]
    if "*" in urls:
        return errors + ([invalid_value(f"{at}.nonResourceURLs", urls, "if '*' is present, must not specify other non-resource URLs")] if len(urls) > 1 else [])
    for i, url in enumerate(urls):
        here = f"{at}.nonResourceURLs[{i}]"
        if not url:
            errors.append(invalid_value(here, url, "nonResourceURL must not be empty"))
        elif url == "/":
            continue
        elif not url.startswith("/"):
            errors.append(invalid_value(here, url, "nonResourceURL must start with slash"))
        elif " " in url:
            errors.append(invalid_value(here, url, "nonResourceURL must not contain white-space"))
        elif "//" in url:
            errors.append(invalid_value(here, url, "nonResourceURL must not contain double slash"))
        elif ("*" in url and not url.endswith("/*")) or url.count("*") > 1:
            errors.append(invalid_value(here, url, "wildcard can only do suffix matching"))
    return errors


class PriorityLevelConfiguration(Kind):
    group = GROUP
    kind = "PriorityLevelConfiguration"

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("type"):
            spec.setdefault("type", "")
        limited = spec.get("limited")
        if limited is not None:
            if limited.get("nominalConcurrencyShares") is None:
                limited["nominalConcurrencyShares"] = 30
            if limited.get("lendablePercent") is None:
                limited["lendablePercent"] = 0
            queuing = (limited.get("limitResponse") or {}).get("queuing")
            if queuing is not None:
                for key, value in (("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)):
                    if not queuing.get(key):
                        queuing[key] = value
        exempt = spec.get("exempt")
        if exempt is not None:
            for key in ("nominalConcurrencyShares", "lendablePercent"):
                if exempt.get(key) is None:
                    exempt[key] = 0

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec, name = obj["spec"], obj["metadata"].get("name") or ""
        kind, limited, exempt = spec.get("type") or "", spec.get("limited"), spec.get("exempt")
        errors: Errors = []
        if (name == "exempt" and kind != "Exempt") or (kind == "Exempt" and name != "exempt"):
            errors.append(invalid_value("spec.type", kind, "type must be 'Exempt' if and only if name is 'exempt'"))
        if kind == "Exempt":
            if limited is not None:
                errors.append(forbidden_field("spec.limited", "must be nil if the type is not Limited"))
            if exempt is not None:
                errors += _shares(exempt, "spec.exempt")
        elif kind == "Limited":
            if exempt is not None:
                errors.append(forbidden_field("spec.exempt", "must be nil if the type is Limited"))
            errors += _limited(limited, "spec.limited") if limited is not None else [required("spec.limited", "must not be empty when type is Limited")]
        else:
            errors.append(not_supported("spec.type", kind, ("Exempt", "Limited")))
        return errors + _status(obj)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        return _status(obj)


def _shares(part: Object, at: str) -> Errors:
    errors: Errors = []
    shares, percent = part.get("nominalConcurrencyShares", 0), part.get("lendablePercent")
    if shares < 0:
        errors.append(invalid_value(f"{at}.nominalConcurrencyShares", shares, "must be a non-negative integer"))
    if percent is not None and not 0 <= percent <= 100:
        errors.append(invalid_value(f"{at}.lendablePercent", percent, "must be between 0 and 100, inclusive"))
    return errors


def _limited(limited: Object, at: str) -> Errors:
    errors = _shares(limited, at)
    borrowing = limited.get("borrowingLimitPercent")
    response = limited.get("limitResponse") or {}
    kind, queuing, here = response.get("type") or "", response.get("queuing"), f"{at}.limitResponse"
    if kind == "Reject":
        if queuing is not None:
            errors.append(forbidden_field(f"{here}.queuing", "must be nil if limited.limitResponse.type is not Limited"))
    elif kind == "Queue":
        errors += (
            _queuing(queuing, f"{here}.queuing")
            if queuing is not None
            else [required(f"{here}.queuing", "must not be empty if limited.limitResponse.type is Limited")]
        )
    else:
        errors.append(not_supported(f"{here}.type", kind, ("Queue", "Reject")))
    if borrowing is not None and borrowing < 0:
        errors.append(invalid_value(f"{at}.borrowingLimitPercent", borrowing, "if specified, must be a non-negative integer"))
    return errors


def _queuing(queuing: Object, at: str) -> Errors:
    errors: Errors = []
    length, queues, hand = queuing.get("queueLengthLimit", 0), queuing.get("queues", 0), queuing.get("handSize", 0)
    if length <= 0:
        errors.append(invalid_value(f"{at}.queueLengthLimit", length, "must be positive"))
    if queues <= 0:
        errors.append(invalid_value(f"{at}.queues", queues, "must be positive"))
    elif queues > _QUEUES_MAX:
        errors.append(invalid_value(f"{at}.queues", queues, f"must not be greater than {_QUEUES_MAX}"))
    if hand <= 0:
        errors.append(invalid_value(f"{at}.handSize", hand, "must be positive"))
    elif hand > queues:
        errors.append(invalid_value(f"{at}.handSize", hand, f"should not be greater than queues ({queues})"))
    elif queues > 0 and _entropy_bits(queues, hand) > 60:
        bits = _entropy_bits(queues, hand)
        errors.append(
            invalid_value(f"{at}.handSize", hand, f"required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60; it is {bits}")
        )
    return errors


def _entropy_bits(deck: int, hand: int) -> int:
    import math

    return math.ceil(sum(math.log2(deck - i) for i in range(hand)))


KINDS = [FlowSchema, PriorityLevelConfiguration]
