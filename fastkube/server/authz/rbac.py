"""RBAC over the stored Roles, ClusterRoles and bindings.

Laws:
1. Purely additive: what no bound rule covers is not allowed (default deny).
2. A RoleBinding grants within its namespace only, whatever role it names; a ClusterRoleBinding everywhere.
3. Decisions are remembered per user and (verb, group, resource, subresource, namespace), with the names a rule was restricted to, so that a cluster
   full of objects shares one entry; any change of an RBAC object empties the memory. Bounded.
4. A ClusterRole with an aggregationRule also has the rules of the roles it selects, before any controller has written them down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastkube.api import resources, selectors
from fastkube.server.authz.decision import DENIED, Decision
from fastkube.server.authz.rules import Rule, covers_ignoring_name
from fastkube.server.reader import Object, Reader
from fastkube.server.request import RequestInfo, User

USERS_MAX = 8192  # users whose decisions are remembered
DECISIONS_MAX = 4096  # per user

GROUP = "rbac.authorization.k8s.io"
ROLES = resources.parse(f"{GROUP}/v1/roles")
CLUSTER_ROLES = resources.parse(f"{GROUP}/v1/clusterroles")
ROLE_BINDINGS = resources.parse(f"{GROUP}/v1/rolebindings")
CLUSTER_ROLE_BINDINGS = resources.parse(f"{GROUP}/v1/clusterrolebindings")

Names = dict[str, Decision]


class Bound(NamedTuple):
    """One binding that applies to a user."""

    binding: Object
    subject: str  # as reasons name it: `User "joe"`
    namespace: str  # where it grants; "": everywhere


class RbacAuthorizer:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        # (kind, name) of a subject -> {(namespace, binding's name): (binding, subject's text)}; service accounts are users here
        self._by_subject: dict[tuple[str, str], dict[tuple[str, str], tuple[Object, str]]] = {}
        self._memory: dict[int, tuple[User, dict[tuple[str, ...], Decision | Names]]] = {}  # by id(user): authentication hands out the same object
        for resource in (ROLES, CLUSTER_ROLES):
            reader.on_change(resource, lambda new, old: self._memory.clear())
        for resource in (ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS):
            reader.on_change(resource, self._binding_changed)
            for binding in reader.list(resource):
                self._index(binding)

    def authorize(self, user: User, info: RequestInfo) -> Decision:
        known = self._memory.get(id(user))
        if known is None or known[0] is not user:
            known = self._remember(user)
        decisions = known[1]
        if info.is_resource:
            key: tuple[str, ...] = (info.verb, info.group, info.resource, info.subresource, info.namespace)
        else:
            key = (info.verb, info.path)
        decision = decisions.get(key)
        if decision is None:
            if len(decisions) >= DECISIONS_MAX:
                decisions.clear()
            decision = decisions[key] = self._decide(user, info)
        if type(decision) is dict:
            return decision.get(info.name) or decision[""]
        return decision  # type: ignore[return-value]

    def rules(self, user: User, namespace: str) -> Iterator[tuple[Rule, Bound]]:
        """All rules that hold for `user` in `namespace` ("": those that hold everywhere), cluster-wide bindings first."""
        for bound in self._bindings(user, namespace):
            for rule in self.rules_of(bound.binding["roleRef"], bound.binding["metadata"].get("namespace", "")) or ():
                yield rule, bound

    def missing_roles(self, user: User, namespace: str) -> Iterator[str]:
        """What the bindings of `user` refer to that is not there, in upstream's words."""
        for bound in self._bindings(user, namespace):
            reference = bound.binding["roleRef"]
            if self.rules_of(reference, bound.binding["metadata"].get("namespace", "")) is None:
                yield f'{reference["kind"].lower()}.{GROUP} "{reference["name"]}" not found'

    def rules_of(self, reference: dict[str, Any], namespace: str) -> list[Rule] | None:
        """The rules of the role that a roleRef names; None when there is no such role."""
        if reference.get("kind") == "ClusterRole":
            role = self._reader.get(CLUSTER_ROLES, None, reference["name"])
        else:
            role = self._reader.get(ROLES, namespace, reference["name"])
        if role is None:
            return None
        if role.get("aggregationRule"):
            return aggregated(role, list(self._reader.list(CLUSTER_ROLES)))
        return role.get("rules") or []

    # -- deciding -------------------------------------------------------------------------------------------------------------------------

    def _remember(self, user: User) -> tuple[User, dict[tuple[str, ...], Decision | Names]]:
        if len(self._memory) >= USERS_MAX:
            del self._memory[next(iter(self._memory))]
        known: tuple[User, dict[tuple[str, ...], Decision | Names]] = (user, {})
        self._memory[id(user)] = known
        return known

    def _decide(self, user: User, info: RequestInfo) -> Decision | Names:
        """A decision for all names, or one per name with that of any other name under ""."""
        names: Names = {}
        for rule, bound in self.rules(user, info.namespace):
            if not covers_ignoring_name(rule, info):
                continue
            decision = Decision(True, _reason(bound))
            restricted = rule.get("resourceNames") if info.is_resource else None
            if not restricted:
                if not names:
                    return decision
                names[""] = decision
                return names
            for name in restricted:
                names.setdefault(name, decision)
        missing = list(self.missing_roles(user, info.namespace))
        if missing:
            refusal = Decision(False, "RBAC: " + (missing[0] if len(missing) == 1 else "[" + ", ".join(missing) + "]"))
        else:
            refusal = DENIED
        if not names:
            return refusal
        names[""] = refusal
        return names

    def _bindings(self, user: User, namespace: str) -> Iterator[Bound]:
        subjects = [("User", user.name), *(("Group", group) for group in user.groups)]
        scoped: list[Bound] = []
        seen: set[tuple[str, str]] = set()
        for subject in subjects:
            for (where, name), (binding, text) in self._by_subject.get(subject, {}).items():
                if (where and where != namespace) or (where, name) in seen:
                    continue
                seen.add((where, name))
                if where:
                    scoped.append(Bound(binding, text, where))
                else:
                    yield Bound(binding, text, where)
        yield from scoped

    # -- the index ------------------------------------------------------------------------------------------------------------------------

    def _binding_changed(self, new: Object | None, old: Object | None) -> None:
        self._memory.clear()
        if old is not None:
            for key, _ in _subjects(old):
                bindings = self._by_subject.get(key)
                if bindings is not None:
                    bindings.pop(_key(old), None)
                    if not bindings:
                        del self._by_subject[key]
        if new is not None:
            self._index(new)

    def _index(self, binding: Object) -> None:
        for key, text in _subjects(binding):
            self._by_subject.setdefault(key, {}).setdefault(_key(binding), (binding, text))


def _key(binding: Object) -> tuple[str, str]:
    return binding["metadata"].get("namespace", ""), binding["metadata"]["name"]


def _subjects(binding: Object) -> Iterator[tuple[tuple[str, str], str]]:
    for subject in binding.get("subjects") or ():
        kind, name = subject["kind"], subject["name"]
        if kind == "ServiceAccount":
            namespace = subject.get("namespace") or binding["metadata"].get("namespace", "")
            if namespace:
                yield ("User", f"system:serviceaccount:{namespace}:{name}"), f'ServiceAccount "{name}/{namespace}"'
        elif kind in ("User", "Group"):
            yield (kind, name), f'{kind} "{name}"'


def _reason(bound: Bound) -> str:
    meta, role = bound.binding["metadata"], bound.binding["roleRef"]
    if bound.namespace:
        return f'RBAC: allowed by RoleBinding "{meta["name"]}/{bound.namespace}" of {role["kind"]} "{role["name"]}" to {bound.subject}'
    return f'RBAC: allowed by ClusterRoleBinding "{meta["name"]}" of {role["kind"]} "{role["name"]}" to {bound.subject}'


def aggregated(role: Object, roles: list[Object], seen: frozenset[str] = frozenset()) -> list[Rule]:
    """The rules of a ClusterRole with an aggregationRule: those of all roles (but itself) that one of its selectors matches, by name, each once.

    Selected roles may aggregate others themselves (admin selects edit selects view); `seen` ends what goes in circles.
    """
    name = role["metadata"]["name"]
    seen |= {name}
    wanted = [selectors.from_object(s) for s in role["aggregationRule"].get("clusterRoleSelectors") or ()]
    rules: list[Rule] = []
    for other in sorted(roles, key=lambda r: r["metadata"]["name"]):
        labels = other["metadata"].get("labels") or {}
        if other["metadata"]["name"] not in seen and any(selector.matches(labels) for selector in wanted):
            found = aggregated(other, roles, seen) if other.get("aggregationRule") else other.get("rules") or ()
            rules += [rule for rule in found if rule not in rules]
    return rules
