"""Audit: the policy's rules, and what stands in the log and reaches a webhook for real requests."""

import asyncio
import json

import pytest
import yaml
from aiohttp import web

from fastkube.server import audit
from fastkube.server.app import ApiServer
from fastkube.server.audit import log as logbackend
from fastkube.server.audit import policy as policies
from fastkube.server.config import StartError
from fastkube.server.request import RequestInfo, User
from fastkube.store.embedded import EmbeddedStore

from .conftest import JOE, MAPS, Api, config, config_map

HEAD = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}


def policy(*rules, **more):
    return policies.parse({**HEAD, "rules": list(rules), **more})


def info(verb="get", resource="pods", group="", sub="", namespace="default", name=""):
    return RequestInfo(verb, "", True, group, "v1", resource, sub, namespace, name)


def url(path, verb="get"):
    return RequestInfo(verb, path)


USER = User("joe", ("devs", "system:authenticated"))


@pytest.mark.parametrize(
    "rule, request_, matches",
    [
        ({}, info(), True),
        ({}, url("/healthz"), True),
        ({"users": ["joe"]}, info(), True),
        ({"users": ["ann"]}, info(), False),
        ({"userGroups": ["devs"]}, info(), True),
        ({"userGroups": ["ops"]}, info(), False),
        ({"verbs": ["watch"]}, info(), False),
        ({"verbs": ["get"]}, info(), True),
        ({"namespaces": ["default"]}, info(), True),
        ({"namespaces": [""]}, info(), False),
        ({"namespaces": [""]}, info(resource="nodes", namespace=""), True),
        ({"namespaces": ["default"]}, url("/healthz"), False),
        ({"resources": [{"group": ""}]}, info(), True),
        ({"resources": [{"group": "apps"}]}, info(), False),
        ({"resources": [{"resources": ["pods"]}]}, info(), True),
        ({"resources": [{"resources": ["pods"]}]}, info(sub="log"), False),
        ({"resources": [{"resources": ["pods/log"]}]}, info(sub="log"), True),
        ({"resources": [{"resources": ["pods/*"]}]}, info(sub="log"), True),
        ({"resources": [{"resources": ["*/log"]}]}, info(sub="log"), True),
        ({"resources": [{"resources": ["*"]}]}, info(sub="log"), True),
        ({"resources": [{"resources": ["pods/*"]}]}, info(), False),
        ({"resources": [{"resources": ["pods"], "resourceNames": ["a"]}]}, info(name="a"), True),
        ({"resources": [{"resources": ["pods"], "resourceNames": ["a"]}]}, info(name="b"), False),
        ({"nonResourceURLs": ["/healthz*"]}, url("/healthz/ping"), True),
        ({"nonResourceURLs": ["/healthz"]}, url("/healthz/ping"), False),
        ({"nonResourceURLs": ["*"]}, url("/version"), True),
        ({"nonResourceURLs": ["*"]}, info(), False),
    ],
)
def test_rules_match_as_upstreams(rule, request_, matches):
    assert (policy({"level": "Metadata", **rule}).rule_for(USER, request_).level == policies.METADATA) is matches


def test_first_match_wins_and_no_match_is_none():
    found = policy({"level": "None", "verbs": ["get"]}, {"level": "Request", "users": ["joe"], "omitStages": ["Panic"]}, omitStages=["RequestReceived"])
    assert found.rule_for(USER, info()).level == policies.NONE
    rule = found.rule_for(USER, info("create"))
    assert rule.level == policies.REQUEST and rule.omitted == {"RequestReceived", "Panic"}
    assert found.rule_for(User("ann"), info("create")).level == policies.NONE
    assert found.rule_for(None, info("create")).level == policies.NONE


@pytest.mark.parametrize(
    "document, says",
    [
        ({**HEAD, "kind": "Pod"}, "kind"),
        (HEAD, "rules: required"),
        ({**HEAD, "rules": [{"level": "All"}]}, 'rules[0].level: unsupported value "All"'),
        ({**HEAD, "rules": [{"level": "None", "verb": []}]}, "rules[0].verb: unknown field"),
        ({**HEAD, "rules": [{"level": "None"}, {"level": "None", "omitStages": ["X"]}]}, "rules[1].omitStages[0]"),
        ({**HEAD, "rules": [{"level": "None", "nonResourceURLs": ["/a"], "namespaces": ["b"]}]}, "rules[0].nonResourceURLs"),
        ({**HEAD, "rules": [{"level": "None", "nonResourceURLs": ["/a*b"]}]}, "rules[0].nonResourceURLs[0]"),
        ({**HEAD, "rules": [{"level": "None", "resources": [{"group": "apps/v1"}]}]}, "rules[0].resources[0].group"),
        ({**HEAD, "rules": [{"level": "None", "users": "joe"}]}, "rules[0].users: must be a list"),
        ({**HEAD, "rules": [{"level": "None"}], "omitManagedFields": "yes"}, "omitManagedFields"),
        ([], "must be a mapping"),
    ],
)
def test_errors_name_file_and_field(tmp_path, document, says):
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(policies.PolicyError) as e:
        policies.load(path)
    assert says in str(e.value) and str(path) in str(e.value)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    for path in (tmp_path / "none.yaml", tmp_path / "bad.yaml"):
        with pytest.raises(policies.PolicyError, match=path.name):
            policies.load(path)


# ---- with a server


@pytest.fixture
async def serve(pki, tokens, tmp_path, api):
    """`serve(policy, ...)` -> an Api whose server audits; its log lines by `lines()`."""
    servers = []

    async def make(document, **more):
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump({**HEAD, **document}))
        log = tmp_path / "log" / "audit.log"
        settings = audit.Config(path, **({"log_path": str(log)} | more))
        server = ApiServer(config(pki, tokens, audit=settings), EmbeddedStore(None))
        await server.start()
        servers.append(server)
        made = Api(server, api.session, pki)
        made.log = log

        async def lines(**wanted):
            backend = server._pipeline.auditor.backends[0]
            while backend._running is not None:
                await backend._running
            events = [json.loads(line) for line in log.read_text().splitlines()]
            return [e for e in events if all(e.get(k) == v for k, v in wanted.items())]

        made.lines = lines
        return made

    yield make
    for server in servers:
        await server.close()


SECRETS = "/api/v1/namespaces/default/secrets"


async def test_events_of_requests(serve):
    api = await serve(
        {
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "nonResourceURLs": ["/healthz"]},
                {"level": "Metadata", "resources": [{"resources": ["secrets"]}]},
                {"level": "RequestResponse", "resources": [{"resources": ["configmaps"]}], "omitManagedFields": True},
                {"level": "Request", "resources": [{"group": "rbac.authorization.k8s.io"}]},
            ],
        }
    )
    await api.call("GET", "/healthz")
    status, headers, _ = await api.raw("POST", MAPS, config_map("a", k="v"), headers={"User-Agent": "me/1"})
    assert status == 201
    await api.make(SECRETS, {"metadata": {"name": "s"}, "stringData": {"p": "hunter2"}})
    await api.call("GET", MAPS + "/a", token=JOE)
    await api.call("GET", MAPS + "/none")
    await api.call("GET", MAPS, token="wrong")
    await api.call("PATCH", MAPS + "/a", {"data": {"k": "w"}}, headers={"Impersonate-User": "ann", "Impersonate-Group": "system:masters"})
    assert "hunter2" not in api.log.read_text() if api.log.exists() else True
    created, got, missing, unknown, patched = await api.lines(level="RequestResponse")
    assert created["auditID"] == headers["Audit-Id"]
    assert created | {"requestReceivedTimestamp": "", "stageTimestamp": "", "auditID": "", "requestObject": "", "responseObject": ""} == {
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "RequestResponse", "auditID": "", "stage": "ResponseComplete", "requestURI": MAPS, "verb": "create",
        "user": {"username": "admin", "uid": "1", "groups": ["system:masters", "system:authenticated"]}, "sourceIPs": ["127.0.0.1"], "userAgent": "me/1",
        "objectRef": {"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"}, "responseStatus": {"metadata": {}, "code": 201},
        "requestObject": "", "responseObject": "", "requestReceivedTimestamp": "", "stageTimestamp": "",
        "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": created["annotations"]["authorization.k8s.io/reason"]},
    }  # fmt: skip
    assert created["requestObject"]["data"] == {"k": "v"} and created["responseObject"]["metadata"]["uid"]
    assert "managedFields" not in created["responseObject"]["metadata"]
    assert got["annotations"]["authorization.k8s.io/decision"] == "forbid" and got["responseStatus"]["reason"] == "Forbidden"
    assert missing["responseStatus"]["code"] == 404 and missing["responseStatus"]["details"]["name"] == "none"
    assert unknown["user"] == {} and unknown["responseStatus"]["code"] == 401 and "annotations" not in unknown
    assert patched["user"]["username"] == "admin" and patched["impersonatedUser"]["username"] == "ann" and patched["requestObject"] == {"data": {"k": "w"}}
    (secret,) = await api.lines(level="Metadata")
    assert secret["objectRef"]["name"] == "s" and "requestObject" not in secret and "responseObject" not in secret
    assert "hunter2" not in api.log.read_text()
    assert not await api.lines(requestURI="/healthz")
    assert api.log.stat().st_mode & 0o777 == 0o600
    metrics = (await api.raw("GET", "/metrics"))[2].decode()
    assert 'apiserver_audit_level_total{level="Metadata"} 1' in metrics


async def test_watches_have_a_beginning_and_an_end(serve):
    api = await serve({"rules": [{"level": "Metadata", "verbs": ["watch"]}]})
    watch = await api.watch("/api/v1/namespaces?watch=1&resourceVersion=0&timeoutSeconds=1")
    assert (await watch.next())["type"] == "ADDED"
    while await watch.next():
        pass
    stages = [(e["stage"], e.get("responseStatus", {}).get("code")) for e in await api.lines()]
    assert stages == [("RequestReceived", None), ("ResponseStarted", 200), ("ResponseComplete", 200)]
    assert len({e["auditID"] for e in await api.lines()}) == 1


async def test_warnings_of_admission_stand_in_annotations(serve):
    api = await serve({"omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]})
    audit.annotate({"of.nobody/x": "y"})  # outside of any request: goes nowhere
    policy_, binding = (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
    )
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "true"}],
        "auditAnnotations": [{"key": "who", "valueExpression": "'is ' + object.metadata.name"}],
    }
    await api.make(policy_, {"metadata": {"name": "p"}, "spec": spec})
    await api.make(binding, {"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}})
    await api.make(MAPS, config_map("noted"))
    (event,) = [e for e in await api.lines(verb="create") if e["objectRef"].get("name") == "noted"]
    assert event["annotations"].get("p/who") == "is noted"


async def test_a_wrong_policy_stops_the_start(serve, pki, tokens, tmp_path):
    with pytest.raises(StartError, match=r"policy.yaml.*rules\[0\].level"):
        await serve({"rules": [{"level": "x"}]})


async def test_log_files_are_rotated_and_kept_in_number(tmp_path, monkeypatch):
    monkeypatch.setattr(logbackend, "MEGABYTE", 100)
    path = tmp_path / "audit.log"
    backend = logbackend.LogBackend(str(path), size_mb=1, backups=2)
    for i in range(50):
        backend.emit(b"%04d" % i * 5)
        await asyncio.sleep(0.002)
    await backend.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and all(f.stat().st_size <= 100 for f in files)
    kept = [line for f in [*(f for f in files if f != path), path] for line in f.read_bytes().split()]
    assert kept == [b"%04d" % i * 5 for i in range(50 - len(kept), 50)]


async def test_nothing_is_lost_when_the_disk_is_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(logbackend, "BUFFER_BYTES_MAX", 1000)
    backend = logbackend.LogBackend(str(tmp_path / "a.log"))
    for i in range(1000):
        backend.emit(b"%d" % i)
    await backend.close()
    assert sorted(map(int, (tmp_path / "a.log").read_text().split())) == list(range(1000))


async def test_webhook_gets_batches(serve, tmp_path):
    taken = []

    async def take(request):
        taken.append((request.headers.get("Authorization"), await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/audit", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    kubeconfig = tmp_path / "webhook.yaml"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}/audit"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    api = await serve({"rules": [{"level": "Metadata"}]}, log_path="", webhook_config_file=kubeconfig)
    for i in range(3):
        await api.make(MAPS, config_map(f"m{i}"))
    await api.server.close()
    await runner.cleanup()
    assert {a for a, _ in taken} == {"Bearer t"} and {b["kind"] for _, b in taken} == {"EventList"}
    events = [e for _, b in taken for e in b["items"] if e["stage"] == "ResponseComplete"]
    assert [e["objectRef"]["name"] for e in events if e["verb"] == "create"] == ["m0", "m1", "m2"]


async def test_webhook_configuration_is_checked(serve, tmp_path):
    bad = tmp_path / "webhook.yaml"
    bad.write_text("current-context: x\ncontexts: []\n")
    with pytest.raises(StartError, match=r'webhook.yaml: contexts: there is none named "x"'):
        await serve({"rules": [{"level": "None"}]}, webhook_config_file=bad)
