"""PolicyRule: whether a rule covers a request, and whether rules cover rules (k8s.io/component-helpers/auth/rbac/validation). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastkube.server.request import RequestInfo

Rule = dict[str, Any]  # as in a Role: verbs, apiGroups, resources, resourceNames, nonResourceURLs


def _of(rule: Rule, key: str) -> Sequence[str]:
    return rule.get(key) or ()


def covers_verb(rule: Rule, verb: str) -> bool:
    verbs = _of(rule, "verbs")
    return "*" in verbs or verb in verbs


def covers_group(rule: Rule, group: str) -> bool:
    groups = _of(rule, "apiGroups")
    return "*" in groups or group in groups


def covers_resource(rule: Rule, resource: str, subresource: str) -> bool:
    combined = f"{resource}/{subresource}" if subresource else resource
    return any(r == "*" or r == combined or (subresource and r == f"*/{subresource}") for r in _of(rule, "resources"))


def covers_name(rule: Rule, name: str) -> bool:
    names = _of(rule, "resourceNames")
    return not names or name in names


def covers_path(rule: Rule, path: str) -> bool:
    return any(p == "*" or p == path or (p.endswith("*") and path.startswith(p[:-1])) for p in _of(rule, "nonResourceURLs"))


def covers_ignoring_name(rule: Rule, info: RequestInfo) -> bool:
    if info.is_resource:
        return covers_verb(rule, info.verb) and covers_group(rule, info.group) and covers_resource(rule, info.resource, info.subresource)
    return covers_verb(rule, info.verb) and covers_path(rule, info.path)


def allows(rules: Iterable[Rule], info: RequestInfo) -> bool:
    return any(covers_ignoring_name(r, info) and (not info.is_resource or covers_name(r, info.name)) for r in rules)


# -- rules against rules ------------------------------------------------------------------------------------------------------------------


def uncovered(owner: Sequence[Rule], wanted: Sequence[Rule]) -> list[Rule]:
    """Which of `wanted`, broken into single permissions, the rules of `owner` do not cover."""
    return [single for rule in wanted for single in breakdown(rule) if not any(_covers_single(o, single) for o in owner)]


def breakdown(rule: Rule) -> list[Rule]:
    """One rule per (group, resource, verb, resource name) and per (path, verb)."""
    singles: list[Rule] = []
    for group in _of(rule, "apiGroups"):
        for resource in _of(rule, "resources"):
            for verb in _of(rule, "verbs"):
                names = _of(rule, "resourceNames")
                base = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
                singles += [{**base, "resourceNames": [name]} for name in names] if names else [base]
    singles += [{"nonResourceURLs": [path], "verbs": [verb]} for path in _of(rule, "nonResourceURLs") for verb in _of(rule, "verbs")]
    return singles


def _covers_single(owner: Rule, single: Rule) -> bool:
    if not _has_all(_of(owner, "verbs"), single["verbs"]):
        return False
    if "nonResourceURLs" in single:
        wanted = single["nonResourceURLs"][0]
        return any(p == "*" or p == wanted or (p.endswith("*") and wanted.startswith(p[:-1])) for p in _of(owner, "nonResourceURLs"))
    names = _of(owner, "resourceNames")
    return (
        _has_all(_of(owner, "apiGroups"), single["apiGroups"])
        and _covers_resource_text(_of(owner, "resources"), single["resources"][0])
        and (not names or ("resourceNames" in single and single["resourceNames"][0] in names))
    )


def _has_all(owned: Sequence[str], wanted: Sequence[str]) -> bool:
    return "*" in owned or all(w in owned for w in wanted)


def _covers_resource_text(owned: Sequence[str], wanted: str) -> bool:
    if "*" in owned or wanted in owned:
        return True
    _, slash, subresource = wanted.partition("/")
    return bool(slash) and f"*/{subresource}" in owned


def compact(rules: Sequence[Rule]) -> list[Rule]:
    """Single-verb rules without names for the same group and resource joined into one (for messages and rule reviews)."""
    joined: dict[tuple[str, str], Rule] = {}
    out: list[Rule] = []
    for rule in rules:
        if "nonResourceURLs" not in rule and not rule.get("resourceNames") and len(_of(rule, "apiGroups")) == 1 and len(_of(rule, "resources")) == 1:
            key = (rule["apiGroups"][0], rule["resources"][0])
            if key in joined:
                joined[key]["verbs"] += rule["verbs"]
                continue
            rule = joined[key] = {**rule, "verbs": list(rule["verbs"])}
        out.append(rule)
    return out


def text(rule: Rule) -> str:
    """A rule as upstream's messages print it: {APIGroups:[""], Resources:["pods"], Verbs:["get"]}."""
    words = [
        f"{label}:[{' '.join(_quoted(v) for v in rule[key])}]"
        for label, key in (
            ("APIGroups", "apiGroups"),
            ("Resources", "resources"),
            ("ResourceNames", "resourceNames"),
            ("NonResourceURLs", "nonResourceURLs"),
            ("Verbs", "verbs"),
        )
        if rule.get(key)
    ]
    return "{" + ", ".join(words) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
