"""RBAC against a plain model: what a reader of the documentation would write down, without indexes and without memory."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.server.authz.rbac import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, ROLE_BINDINGS, ROLES, RbacAuthorizer, aggregated
from fastkube.server.authz.rules import allows, breakdown, compact, text, uncovered
from fastkube.server.request import RequestInfo, User
from tests.access.memory import MemoryReader

VERBS, GROUPS, PLURALS, SUBS, NAMES, SPACES = (
    ("get", "list", "create"),
    ("", "apps"),
    ("pods", "secrets"),
    ("", "log", "scale"),
    ("", "a", "b"),
    ("", "n1", "n2"),
)
USERS = (User("joe", ("devs",)), User("ann", ("devs", "ops")), User("system:serviceaccount:n1:bot", ("system:serviceaccounts",)))

some = lambda values: st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)  # noqa: E731
resource_rules = st.fixed_dictionaries(
    {"verbs": some((*VERBS, "*")), "apiGroups": some((*GROUPS, "*")), "resources": some((*PLURALS, "pods/log", "*/scale", "*"))},
    optional={"resourceNames": some(("a", "b"))},
)
url_rules = st.fixed_dictionaries({"verbs": some((*VERBS, "*")), "nonResourceURLs": some(("/healthz", "/api/*", "*", "/version/"))})
rules = st.lists(st.one_of(resource_rules, url_rules), max_size=3)
infos = st.one_of(
    st.builds(
        lambda verb, group, plural, sub, space, name: RequestInfo(verb, "", True, group, "v1", plural, sub, space, name),
        st.sampled_from(VERBS), st.sampled_from(GROUPS), st.sampled_from(PLURALS), st.sampled_from(SUBS), st.sampled_from(SPACES), st.sampled_from(NAMES),
    ),
    st.builds(RequestInfo, st.sampled_from(VERBS), st.sampled_from(("/healthz", "/api/v1", "/api", "/version/"))),
)  # fmt: skip
subjects = st.lists(
    st.sampled_from(
        (
            {"kind": "User", "apiGroup": GROUP, "name": "joe"}, {"kind": "Group", "apiGroup": GROUP, "name": "ops"},
            {"kind": "Group", "apiGroup": GROUP, "name": "devs"}, {"kind": "ServiceAccount", "namespace": "n1", "name": "bot"},
        )
    ),
    max_size=2,
)  # fmt: skip
changes = st.lists(
    st.one_of(
        st.tuples(st.just("role"), st.sampled_from(("n1", "n2")), st.sampled_from("xy"), st.none() | rules),
        st.tuples(st.just("clusterrole"), st.just(""), st.sampled_from("xy"), st.none() | rules),
        st.tuples(st.just("rolebinding"), st.sampled_from(("n1", "n2")), st.sampled_from("xy"), st.none() | st.tuples(st.sampled_from(("Role", "ClusterRole")), st.sampled_from("xy"), subjects)),
        st.tuples(st.just("clusterrolebinding"), st.just(""), st.sampled_from("xy"), st.none() | st.tuples(st.just("ClusterRole"), st.sampled_from("xy"), subjects)),
    ),
    max_size=8,
)  # fmt: skip
RESOURCES = {"role": ROLES, "clusterrole": CLUSTER_ROLES, "rolebinding": ROLE_BINDINGS, "clusterrolebinding": CLUSTER_ROLE_BINDINGS}


def model_covers(rule: dict[str, Any], info: RequestInfo) -> bool:
    if info.verb not in rule["verbs"] and "*" not in rule["verbs"]:
        return False
    if not info.is_resource:
        return any(u in ("*", info.path) or (u[-1] == "*" and info.path.startswith(u[:-1])) for u in rule.get("nonResourceURLs", ()))
    if info.group not in rule.get("apiGroups", ()) and "*" not in rule.get("apiGroups", ()):
        return False
    wanted = {"*", info.resource + ("/" + info.subresource if info.subresource else "")} | ({"*/" + info.subresource} if info.subresource else set())
    return bool(wanted & set(rule.get("resources", ()))) and (not rule.get("resourceNames") or info.name in rule["resourceNames"])


def model_is(subject: dict[str, Any], user: User) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    return user.name == subject["name"] if subject["kind"] == "User" else subject["name"] in user.groups


def model_allows(state: dict[tuple[str, str, str], Any], user: User, info: RequestInfo) -> bool:
    for (kind, space, _), value in state.items():
        if not kind.endswith("binding") or (space and space != info.namespace):
            continue
        role_kind, role, who = value
        if any(model_is(s, user) for s in who):
            found = state.get(("role", space, role) if role_kind == "Role" else ("clusterrole", "", role), ())
            if any(model_covers(rule, info) for rule in found):
                return True
    return False


@settings(max_examples=120, deadline=None)
@given(changes, st.lists(st.tuples(st.sampled_from(USERS), infos), min_size=1, max_size=8))
def test_every_decision_is_the_models_after_every_change(steps: list[Any], questions: list[tuple[User, RequestInfo]]) -> None:
    reader, state = MemoryReader(), {}
    authorizer = RbacAuthorizer(reader)  # type: ignore[arg-type]
    for kind, space, name, value in [("", "", "", None), *steps]:
        if kind and value is None:
            reader.delete(RESOURCES[kind], space, name)
            state.pop((kind, space, name), None)
        elif kind:
            state[kind, space, name] = value
            meta = {"name": name, **({"namespace": space} if space else {})}
            if kind.endswith("binding"):
                reader.put(RESOURCES[kind], {"metadata": meta, "roleRef": {"apiGroup": GROUP, "kind": value[0], "name": value[1]}, "subjects": value[2]})
            else:
                reader.put(RESOURCES[kind], {"metadata": meta, "rules": value})
        for user, info in questions:
            for _ in range(2):  # the second answer comes from memory
                assert authorizer.authorize(user, info).allowed == model_allows(state, user, info), (user, info, state)


@settings(max_examples=300, deadline=None)
@given(rules, rules, st.lists(infos, min_size=1, max_size=20))
def test_who_covers_all_rules_is_allowed_what_they_allow(owned: list[Any], wanted: list[Any], questions: list[RequestInfo]) -> None:
    missing = uncovered(owned, wanted)
    if not missing:
        assert all(allows(owned, info) for info in questions if allows(wanted, info))
    assert not uncovered([*owned, *missing], wanted)
    assert not uncovered(wanted, wanted)


@settings(max_examples=200, deadline=None)
@given(rules, st.lists(infos, min_size=1, max_size=20))
def test_breaking_down_and_compacting_change_nothing(wanted: list[Any], questions: list[RequestInfo]) -> None:
    singles = [s for r in wanted for s in breakdown(r)]
    assert [allows(wanted, i) for i in questions] == [allows(singles, i) for i in questions] == [allows(compact(singles), i) for i in questions]


def binding(name: str, role: str, *who: dict[str, Any], kind: str = "ClusterRole") -> dict[str, Any]:
    return {"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}, "subjects": list(who)}


def test_a_name_restricted_rule_does_not_hide_a_later_one() -> None:
    reader = MemoryReader()
    restricted = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["one"]}
    reader.put(CLUSTER_ROLES, {"metadata": {"name": "r"}, "rules": [restricted]})
    reader.put(CLUSTER_ROLE_BINDINGS, binding("b", "r", {"kind": "User", "name": "joe"}))
    authorizer = RbacAuthorizer(reader)  # type: ignore[arg-type]
    user = User("joe")
    ask = lambda name: authorizer.authorize(user, RequestInfo("get", "", True, "", "v1", "pods", "", "d", name))  # noqa: E731
    assert [ask(n).allowed for n in ("one", "two", "")] == [True, False, False]
    reader.put(CLUSTER_ROLES, {"metadata": {"name": "r"}, "rules": [restricted, {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]})
    assert [ask(n).allowed for n in ("one", "two", "")] == [True, True, True]


def test_reasons_are_upstreams() -> None:
    reader = MemoryReader()
    rule = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    reader.put(CLUSTER_ROLES, {"metadata": {"name": "r"}, "rules": [rule]})
    reader.put(CLUSTER_ROLE_BINDINGS, binding("b", "r", {"kind": "Group", "name": "devs"}))
    reader.put(CLUSTER_ROLE_BINDINGS, binding("c", "gone", {"kind": "User", "name": "joe"}))
    authorizer = RbacAuthorizer(reader)  # type: ignore[arg-type]
    pods = RequestInfo("get", "", True, "", "v1", "pods", "", "d", "p")
    assert authorizer.authorize(User("x", ("devs",)), pods).reason == 'RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "r" to Group "devs"'
    refused = authorizer.authorize(User("joe"), pods)
    assert not refused.allowed and refused.reason == 'RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found'
    assert text({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}) == '{APIGroups:[""], Resources:["pods"], Verbs:["get"]}'


def test_aggregation_follows_labels_through_aggregates_and_circles() -> None:
    def role(name: str, labels: dict[str, str], selects: str = "", *rules: str) -> dict[str, Any]:
        obj: dict[str, Any] = {"metadata": {"name": name, "labels": labels}, "rules": [{"verbs": [r], "apiGroups": [""], "resources": ["pods"]} for r in rules]}
        if selects:
            obj["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {selects: "true"}}]}
        return obj

    view = role("view", {"to-edit": "true"}, "to-view")
    edit = role("edit", {"to-admin": "true", "to-view": "true"}, "to-edit")  # edit selects view selects edit
    leaf = role("leaf", {"to-view": "true"}, "", "get", "list")
    admin = role("admin", {}, "to-admin")
    everything = [view, edit, leaf, admin]
    assert [r["verbs"] for r in aggregated(admin, everything)] == [["get"], ["list"]]
    assert [r["verbs"] for r in aggregated(view, everything)] == [["get"], ["list"]]
