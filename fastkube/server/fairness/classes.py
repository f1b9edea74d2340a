"""Which FlowSchema a request belongs to: subjects, rules, matchingPrecedence (k8s.io/apiserver/pkg/util/flowcontrol/rule.go)."""

from __future__ import annotations

from typing import Any

from fastkube.server.request import RequestInfo, User

Object = dict[str, Any]

ACCOUNT = "system:serviceaccount:"


def ordered(schemas: list[Object]) -> list[Object]:
    """By matchingPrecedence, then by name: the first that matches is a request's."""
    return sorted(schemas, key=lambda s: (s["spec"].get("matchingPrecedence", 1000), s["metadata"]["name"]))


def matches(schema: Object, user: User, info: RequestInfo) -> bool:
    return any(_rule(rule, user, info) for rule in schema["spec"].get("rules") or ())


def _rule(rule: Object, user: User, info: RequestInfo) -> bool:
    if not any(_subject(s, user) for s in rule.get("subjects") or ()):
        return False
    if info.is_resource:
        return any(_resource(r, info) for r in rule.get("resourceRules") or ())
    return any(_takes(r.get("verbs"), info.verb) and _path(r.get("nonResourceURLs") or (), info.path) for r in rule.get("nonResourceRules") or ())


def _subject(subject: Object, user: User) -> bool:
    kind = subject.get("kind")
    if kind == "User":
        return subject["user"]["name"] in ("*", user.name)
    if kind == "Group":
        name = subject["group"]["name"]
        return name == "*" or name in user.groups
    if kind == "ServiceAccount":
        account = subject["serviceAccount"]
        if account["name"] == "*":
            return user.name.startswith(f"{ACCOUNT}{account['namespace']}:")
        return user.name == f"{ACCOUNT}{account['namespace']}:{account['name']}"
    return False


def _resource(rule: Object, info: RequestInfo) -> bool:
    resource = f"{info.resource}/{info.subresource}" if info.subresource else info.resource
    if not (_takes(rule.get("verbs"), info.verb) and _takes(rule.get("apiGroups"), info.group) and _takes(rule.get("resources"), resource)):
        return False
    if not info.namespace:
        return bool(rule.get("clusterScope"))
    return _takes(rule.get("namespaces"), info.namespace)


def _takes(allowed: list[str] | None, value: str) -> bool:
    return allowed is not None and ("*" in allowed or value in allowed)


def _path(patterns: Any, path: str) -> bool:
    return any(p == "*" or p == path or (p.endswith("/*") and path.startswith(p[:-1])) for p in patterns)
