"""Priority and fairness: classification as upstream's, the laws of seats and queues, and a server under real load."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.server import flowdefaults
from fastkube.server.app import ApiServer
from fastkube.server.fairness.classes import matches, ordered
from fastkube.server.fairness.seats import CONCURRENCY_LIMIT, QUEUE_FULL, Level, Pool, Refused, deal
from fastkube.server.request import RequestInfo, User
from fastkube.store.embedded import EmbeddedStore

from .conftest import JOE, MAPS, Api, config, config_map

ALL = ("system:authenticated",)
ACCOUNTS = ("system:serviceaccounts", *ALL)


def info(verb="get", resource="pods", group="", sub="", namespace="default"):
    return RequestInfo(verb, "", True, group, "v1", resource, sub, namespace)


@pytest.mark.parametrize(
    "user, asked, schema",
    [
        (User("admin", ("system:masters", *ALL)), info(), "exempt"),
        (User("joe", ALL), RequestInfo("get", "/readyz"), "probes"),
        (User("system:anonymous", ("system:unauthenticated",)), RequestInfo("get", "/livez"), "probes"),
        (User("joe", ALL), RequestInfo("get", "/livez/etcd"), "global-default"),
        (User("system:kube-scheduler", ALL), info("update", "leases", "coordination.k8s.io", namespace="kube-system"), "system-leader-election"),
        (User("system:kube-scheduler", ALL), info("create", "pods", sub="binding"), "kube-scheduler"),
        (User("system:node:n", ("system:nodes", *ALL)), info("update", "leases", "coordination.k8s.io"), "system-node-high"),
        (User("system:node:n", ("system:nodes", *ALL)), info("patch", "nodes", sub="status", namespace=""), "system-node-high"),
        (User("system:node:n", ("system:nodes", *ALL)), info("patch", "pods", sub="status"), "system-nodes"),
        (User("system:serviceaccount:kube-system:x", ACCOUNTS), info("list"), "kube-system-service-accounts"),
        (User("system:serviceaccount:kube-systemx:x", ACCOUNTS), info("list"), "service-accounts"),
        (User("joe", ALL), info("list"), "global-default"),
        (User("joe", ALL), info("list", namespace=""), "global-default"),
        (User("nobody", ()), info(), None),
    ],
)
def test_default_schemas_classify_as_upstreams(user, asked, schema):
    found = next((s["metadata"]["name"] for s in ordered(flowdefaults.flow_schemas()) if matches(s, user, asked)), None)
    assert found == schema


def test_rules_hold_to_scope_and_path():
    rule = {"verbs": ["*"], "apiGroups": [""], "resources": ["pods", "pods/log"], "namespaces": ["a"]}
    urls = {"verbs": ["get"], "nonResourceURLs": ["/debug/*"]}
    schema = {"spec": {"rules": [{"subjects": [{"kind": "User", "user": {"name": "*"}}], "resourceRules": [rule], "nonResourceRules": [urls]}]}}
    user = User("u")
    assert matches(schema, user, info(namespace="a")) and matches(schema, user, info(sub="log", namespace="a"))
    assert not matches(schema, user, info(sub="status", namespace="a")) and not matches(schema, user, info(namespace="b"))
    assert not matches(schema, user, info(namespace=""))  # needs clusterScope
    assert matches(schema, user, RequestInfo("get", "/debug/x")) and not matches(schema, user, RequestInfo("get", "/debug"))


# ---- the core


def level(name, shares=10, lendable=0, queues=0, hand=1, length=50, borrowing=None):
    response = {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}} if queues else {"type": "Reject"}
    limited = {"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}
    if borrowing is not None:
        limited["borrowingLimitPercent"] = borrowing
    return Level(name, {"type": "Limited", "limited": limited})


def pool(seats, *levels):
    made = Pool(seats)
    made.configure(levels)
    return made


@given(st.integers(0, 2**64 - 1), st.integers(1, 128), st.data())
def test_hands_have_different_cards_of_the_deck(flow, deck, data):
    hand = data.draw(st.integers(1, min(deck, 8)))
    cards = deal(flow, deck, hand)
    assert len(set(cards)) == hand and all(0 <= c < deck for c in cards)


def test_seats_are_shared_by_nominal_shares():
    made = pool(600, *(Level(p["metadata"]["name"], p["spec"]) for p in flowdefaults.priority_levels()))
    nominal = {name: level.nominal for name, level in made.levels.items()}  # as upstream's: ceil(600 * shares / 245)
    assert nominal == {
        "exempt": 0,
        "catch-all": 13,
        "system": 74,
        "node-high": 98,
        "leader-election": 25,
        "workload-high": 98,
        "workload-low": 245,
        "global-default": 49,
    }
    assert made.levels["workload-low"].guaranteed == 245 - round(245 * 0.9)


def test_what_is_lendable_is_lent_and_what_is_guaranteed_is_not():
    a, b = level("a", 10, lendable=50, queues=1), level("b", 10)
    made = pool(20, a, b)
    assert [made.take(b, 1) for _ in range(16)] == [True] * 15 + [False]
    assert [made.take(a, 1) for _ in range(6)] == [True] * 5 + [False]  # its guaranteed half, at once
    made.release(b, 1)
    assert made.take(a, 1)


def test_borrowing_is_limited_where_it_is_said():
    made = pool(20, level("a", 10, lendable=100), level("b", 10, borrowing=20))
    assert [made.take(made.levels["b"], 1) for _ in range(13)] == [True] * 12 + [False]


def test_full_queues_and_levels_without_refuse():
    a, b = level("a", queues=1, length=2), level("b")
    made = pool(2, a, b)
    assert made.take(a, 1) and not made.take(a, 1)
    for _ in range(2):
        made.wait(a, 1, 0, lambda: None)
    with pytest.raises(Refused, match=QUEUE_FULL):
        made.wait(a, 1, 0, lambda: None)
    with pytest.raises(Refused, match=CONCURRENCY_LIMIT):
        made.wait(b, 1, 0, lambda: None)


def test_a_quiet_flow_is_served_beside_a_loud_one():
    a = level("a", queues=16, hand=2, length=100)
    made = pool(1, a)
    assert made.take(a, 1)
    order = []
    for i in range(50):
        made.wait(a, 1, 5, lambda i=i: order.append(("loud", i)))
    quiet = next(f for f in range(100) if not set(deal(f, 16, 2)) & set(deal(5, 16, 2)))
    made.wait(a, 1, quiet, lambda: order.append(("quiet", 0)))
    for _ in range(4):
        made.release(a, 1)
    assert ("quiet", 0) in order


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_laws_hold_over_any_history(data):
    names = "abc"
    levels = [level(n, data.draw(st.integers(1, 20)), data.draw(st.integers(0, 100)), data.draw(st.integers(0, 3)), 1, 3) for n in names]
    made = pool(data.draw(st.integers(1, 30)), *levels)
    running, waiting = [], []
    for _ in range(data.draw(st.integers(0, 60))):
        one = data.draw(st.sampled_from(levels))
        width = data.draw(st.integers(1, max(1, min(4, one.nominal))))
        action = data.draw(st.sampled_from(["ask", "release", "leave"]))
        if action == "ask":
            guaranteed = one.in_use + width <= one.guaranteed and not one.waiting
            if made.take(one, width):
                running.append((one, width))
            else:
                assert not guaranteed
                try:
                    token = []
                    token.append(
                        made.wait(one, width, data.draw(st.integers(0, 99)), lambda o=one, w=width, t=token: (running.append((o, w)), waiting.remove((o, t))))
                    )
                    waiting.append((one, token))
                except Refused:
                    pass
        elif action == "release" and running:
            made.release(*running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif action == "leave" and waiting:
            who, token = waiting.pop(0)
            made.leave(who, token[0])
        assert sum(max(x.in_use, x.guaranteed) for x in levels) == made._reserved <= made.total
        assert all(x.in_use <= x.upper and x.waiting == sum(len(q.waiters) for q in x.queues) for x in levels)
        assert all(x.in_use == sum(w for y, w in running if y is x) for x in levels)
    while running:
        made.release(*running.pop())
    assert not waiting and not any(x.in_use or x.waiting for x in levels)


# ---- with a server

FLOW = "/apis/flowcontrol.apiserver.k8s.io/v1"


@pytest.fixture
async def small(pki, tokens, api):
    """A server with few seats, on which joe may do anything."""
    server = ApiServer(config(pki, tokens, max_requests_inflight=10, max_mutating_requests_inflight=10), EmbeddedStore(None))
    await server.start()
    made = Api(server, api.session, pki)
    await made.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {
        "metadata": {"name": "joe"}, "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}, "subjects": [{"kind": "User", "name": "joe"}],
    })  # fmt: skip
    yield made
    await server.close()


async def test_answers_name_schema_and_level(small):
    _, schema = await small.call("GET", f"{FLOW}/flowschemas/global-default")
    _, level_ = await small.call("GET", f"{FLOW}/prioritylevelconfigurations/global-default")
    for method, path, body in (("GET", MAPS, None), ("POST", MAPS, config_map("a")), ("GET", MAPS + "/none", None)):
        _, headers, _ = await small.raw(method, path, body, token=JOE)
        assert headers["X-Kubernetes-PF-FlowSchema-UID"] == schema["metadata"]["uid"]
        assert headers["X-Kubernetes-PF-PriorityLevel-UID"] == level_["metadata"]["uid"]


async def test_a_new_schema_holds_from_its_commit_on(small):
    rules = [{"subjects": [{"kind": "User", "user": {"name": "joe"}}], "resourceRules": [flowdefaults.ALL_RESOURCES]}]
    await small.call("GET", MAPS, token=JOE)
    made = await small.make(
        f"{FLOW}/flowschemas",
        {"metadata": {"name": "joes"}, "spec": {"priorityLevelConfiguration": {"name": "workload-low"}, "matchingPrecedence": 50, "rules": rules}},
    )
    _, headers, _ = await small.raw("GET", MAPS, token=JOE)
    assert headers["X-Kubernetes-PF-FlowSchema-UID"] == made["metadata"]["uid"]
    await small.call("DELETE", f"{FLOW}/flowschemas/joes")
    _, headers, _ = await small.raw("GET", MAPS, token=JOE)
    assert headers["X-Kubernetes-PF-FlowSchema-UID"] != made["metadata"]["uid"]


async def test_overload_is_refused_while_health_and_system_go_on(small):
    """300 writers of joe's at once on a level with one queue of ten: he is told to come back; probes, masters and small flows are answered."""
    await small.call("PATCH", f"{FLOW}/prioritylevelconfigurations/global-default", {
        "spec": {"limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 10}}}},
    })  # fmt: skip
    stop = asyncio.Event()
    codes = {}

    async def writer(n):
        i = 0
        while not stop.is_set():
            status, headers, body = await small.raw("POST", MAPS, config_map(f"m{n}-{i}"), token=JOE)
            codes[status] = codes.get(status, 0) + 1
            if status == 429:
                assert headers["Retry-After"] == "1" and json.loads(body)["reason"] == "TooManyRequests"
            i += 1

    writers = [asyncio.create_task(writer(n)) for n in range(90)]
    try:
        for i in range(20):
            assert (await small.call("GET", "/readyz", token=""))[0] == 200
            assert (await small.call("POST", MAPS, config_map(f"system{i}")))[0] == 201
    finally:
        stop.set()
        await asyncio.gather(*writers)
    assert codes.keys() == {201, 429}, codes
    levels = small.server._pipeline.fairness.pool.levels.values()
    assert not any(one.in_use or one.waiting or one.executing for one in levels)
    metrics = (await small.raw("GET", "/metrics"))[2].decode()
    assert 'apiserver_flowcontrol_rejected_requests_total{flow_schema="global-default",priority_level="global-default",reason="queue-full"}' in metrics
    assert "# TYPE apiserver_flowcontrol_dispatched_requests_total counter" in metrics
    assert 'apiserver_flowcontrol_nominal_limit_seats{priority_level="system"} 3' in metrics


async def test_wide_lists_keep_their_seats_until_they_are_sent(small):
    fairness = small.server._pipeline.fairness
    await asyncio.gather(*(small.make(MAPS, config_map(f"m{i:03}", k="x" * 50_000)) for i in range(250)))
    one = fairness.pool.levels["global-default"]
    for end in ("read", "abort"):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port, ssl=small.session.connector._ssl, limit=1 << 16)
        writer.write(f"GET {MAPS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {JOE}\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert (one.in_use, one.executing) == (min(3, one.nominal), 1)
        if end == "read":
            assert (await reader.read(-1)).endswith(b"]}\n")
        writer.transport.abort()
        async with asyncio.timeout(10):
            while one.in_use:
                await asyncio.sleep(0.01)
    status, answer = await small.call("GET", MAPS + "?limit=10", token=JOE)
    assert status == 200 and len(answer["items"]) == 10 and not one.in_use


async def test_mandatory_schemas_hold_when_deleted(small):
    for name in ("catch-all", "exempt"):
        await small.call("DELETE", f"{FLOW}/flowschemas/{name}")
        await small.call("DELETE", f"{FLOW}/prioritylevelconfigurations/{name}")
    assert (await small.call("GET", MAPS))[0] == 200
    assert small.server._pipeline.fairness.classify(User("x"), info()).name == "catch-all"


async def test_schemas_say_whether_their_level_is_there(small):
    rules = [{"subjects": [{"kind": "User", "user": {"name": "joe"}}], "resourceRules": [flowdefaults.ALL_RESOURCES]}]
    await small.make(f"{FLOW}/flowschemas", {"metadata": {"name": "dangles"}, "spec": {"priorityLevelConfiguration": {"name": "none"}, "rules": rules}})
    wanted = {"dangles": ("True", "NotFound"), "global-default": ("False", "Found")}
    async with asyncio.timeout(10):
        while wanted:
            for name in list(wanted):
                _, schema = await small.call("GET", f"{FLOW}/flowschemas/{name}")
                if [(c["status"], c["reason"]) for c in (schema.get("status") or {}).get("conditions") or ()] == [wanted[name]]:
                    del wanted[name]
            await asyncio.sleep(0.02)
    _, headers, _ = await small.raw("GET", MAPS, token=JOE)
    _, default = await small.call("GET", f"{FLOW}/flowschemas/global-default")
    assert headers["X-Kubernetes-PF-FlowSchema-UID"] == default["metadata"]["uid"]
