"""The audit policy (audit.k8s.io/v1 Policy): which requests are recorded, and how much of them.

The first rule that matches a request decides its level; a request that no rule matches is not recorded. Matching is upstream's
(k8s.io/apiserver/pkg/audit/policy): an empty list of a rule means all. `load` names the file and the field of whatever is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastkube.api import codec
from fastkube.api.errors import ApiError
from fastkube.server.request import RequestInfo, User

NONE, METADATA, REQUEST, REQUEST_RESPONSE = range(4)
LEVELS = {"None": NONE, "Metadata": METADATA, "Request": REQUEST, "RequestResponse": REQUEST_RESPONSE}
LEVEL_NAMES = tuple(LEVELS)
STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete", "Panic")
POLICY_BYTES_MAX = 1 << 20

_POLICY_FIELDS = {"apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"}
_RULE_FIELDS = {"level", "users", "userGroups", "verbs", "resources", "namespaces", "nonResourceURLs", "omitStages", "omitManagedFields"}
_GROUP_FIELDS = {"group", "resources", "resourceNames"}


class PolicyError(ValueError):
    """The policy cannot be used; the text names file and field."""


@dataclass(frozen=True, slots=True)
class GroupResources:
    group: str
    resources: frozenset[str]
    names: frozenset[str]

    def matches(self, info: RequestInfo) -> bool:
        if self.group != info.group or (self.names and info.name not in self.names):
            return False
        wanted, sub = self.resources, info.subresource
        if not wanted or "*" in wanted:
            return True
        if not sub:
            return info.resource in wanted
        return f"{info.resource}/{sub}" in wanted or f"*/{sub}" in wanted or f"{info.resource}/*" in wanted


@dataclass(frozen=True, slots=True)
class Rule:
    level: int
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    verbs: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    resources: tuple[GroupResources, ...] = ()
    urls: tuple[str, ...] = ()
    omitted: frozenset[str] = frozenset()  # stages, the policy's included
    omit_managed_fields: bool = False

    def matches(self, user: User | None, info: RequestInfo) -> bool:
        if self.users and (user is None or user.name not in self.users):
            return False
        if self.groups and (user is None or self.groups.isdisjoint(user.groups)):
            return False
        if self.verbs and info.verb not in self.verbs:
            return False
        if self.namespaces or self.resources:
            if not info.is_resource or (self.namespaces and info.namespace not in self.namespaces):
                return False
            return not self.resources or any(r.matches(info) for r in self.resources)
        return not self.urls or (not info.is_resource and any(_covers(u, info.path) for u in self.urls))


def _covers(pattern: str, path: str) -> bool:
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


@dataclass(frozen=True, slots=True)
class Policy:
    rules: tuple[Rule, ...] = ()
    nothing: Rule = field(default_factory=lambda: Rule(NONE))

    def rule_for(self, user: User | None, info: RequestInfo) -> Rule:
        """The rule that decides; one of level None when none matches. `user` None: nobody was authenticated."""
        for rule in self.rules:
            if rule.matches(user, info):
                return rule
        return self.nothing


# ---- reading


def load(path: Path) -> Policy:
    """The policy in a YAML or JSON file. Raises PolicyError."""
    try:
        body = path.read_bytes()
        if len(body) > POLICY_BYTES_MAX:
            raise PolicyError(f"larger than {POLICY_BYTES_MAX} bytes")
        return parse(codec.load(body, "application/yaml"))
    except OSError as e:
        raise PolicyError(f"audit policy {path}: cannot be read: {e.strerror or e}") from e
    except (ValueError, ApiError) as e:
        raise PolicyError(f"audit policy {path}: {e}") from e


def parse(document: Any) -> Policy:
    """A decoded Policy. Raises PolicyError naming the field."""
    policy = _mapping(document, "", _POLICY_FIELDS)
    if (policy.get("apiVersion"), policy.get("kind")) != ("audit.k8s.io/v1", "Policy"):
        raise PolicyError(f"apiVersion, kind: expected audit.k8s.io/v1 Policy, got {policy.get('apiVersion')} {policy.get('kind')}")
    omitted = _stages(policy, "")
    managed = _flag(policy, "")
    rules = policy.get("rules")
    if not isinstance(rules, list) or not rules:
        raise PolicyError("rules: required, a list of at least one rule")
    return Policy(tuple(_rule(r, f"rules[{i}]", omitted, bool(managed)) for i, r in enumerate(rules)))


def _rule(value: Any, at: str, omitted: frozenset[str], managed: bool) -> Rule:
    rule = _mapping(value, at, _RULE_FIELDS)
    level = rule.get("level")
    if level not in LEVELS:
        raise PolicyError(f'{at}.level: unsupported value "{level}": supported values: {", ".join(LEVELS)}')
    urls = _strings(rule, "nonResourceURLs", at)
    namespaces = _strings(rule, "namespaces", at)
    groups = rule.get("resources") or []
    if not isinstance(groups, list):
        raise PolicyError(f"{at}.resources: must be a list")
    if urls and (groups or namespaces):
        raise PolicyError(f"{at}.nonResourceURLs: a rule cannot apply to both resources or namespaces and non-resource URLs")
    for i, url in enumerate(urls):
        if url != "*" and (not url.startswith("/") or "*" in url[:-1]):
            raise PolicyError(f'{at}.nonResourceURLs[{i}]: "{url}" must begin with / and may have * at its end only')
    own = _flag(rule, at)
    return Rule(
        LEVELS[level],
        frozenset(_strings(rule, "users", at)),
        frozenset(_strings(rule, "userGroups", at)),
        frozenset(_strings(rule, "verbs", at)),
        frozenset(namespaces),
        tuple(_group(g, f"{at}.resources[{i}]") for i, g in enumerate(groups)),
        tuple(urls),
        omitted | _stages(rule, at),
        managed if own is None else own,
    )


def _group(value: Any, at: str) -> GroupResources:
    given = _mapping(value, at, _GROUP_FIELDS)
    group = given.get("group") or ""
    if not isinstance(group, str) or "/" in group:
        raise PolicyError(f'{at}.group: "{group}" must be the name of an API group, without a version')
    resources, names = _strings(given, "resources", at), _strings(given, "resourceNames", at)
    if names and not resources:
        raise PolicyError(f"{at}.resourceNames: needs at least one of resources")
    return GroupResources(group, frozenset(resources), frozenset(names))


def _mapping(value: Any, at: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolicyError(f"{at or 'policy'}: must be a mapping")
    for key in value:
        if key not in known:
            raise PolicyError(f"{at + '.' if at else ''}{key}: unknown field")
    return value


def _strings(of: dict[str, Any], key: str, at: str) -> list[str]:
    value = of.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise PolicyError(f"{at}.{key}: must be a list of strings")
    return value


def _stages(of: dict[str, Any], at: str) -> frozenset[str]:
    given = _strings(of, "omitStages", at)
    for i, stage in enumerate(given):
        if stage not in STAGES:
            raise PolicyError(f'{at + "." if at else ""}omitStages[{i}]: unsupported value "{stage}": supported values: {", ".join(STAGES)}')
    return frozenset(given)


def _flag(of: dict[str, Any], at: str) -> bool | None:
    value = of.get("omitManagedFields")
    if value is not None and not isinstance(value, bool):
        raise PolicyError(f"{at + '.' if at else ''}omitManagedFields: must be true or false")
    return value
