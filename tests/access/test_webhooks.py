"""Admission webhooks: real HTTPS servers with certificates of their own authority."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from fastkube.runtime.pki import Pki, server_context
from fastkube.server.admission.webhooks import Caller, Hook, Unreachable
from tests.access.conftest import ADMIN, Cluster
from tests.access.memory import MemoryReader

BASE = "/apis/admissionregistration.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"
RULE = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
Answerer = Callable[[dict[str, Any]], dict[str, Any]]


class Hooks:
    """An HTTPS server whose paths answer AdmissionReviews as a test says."""

    def __init__(self, port: int, bundle: str) -> None:
        self.port, self.bundle = port, bundle
        self.answers: dict[str, Answerer] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def config(self, path: str, name: str = "a.example.com", **more: Any) -> dict[str, Any]:
        client = {"url": f"https://127.0.0.1:{self.port}/{path}", "caBundle": self.bundle}
        return {"name": name, "admissionReviewVersions": ["v1"], "clientConfig": client, "rules": [RULE], "sideEffects": "None", "timeoutSeconds": 2, **more}

    async def handle(self, request: web.Request) -> web.Response:
        asked = orjson.loads(await request.read())["request"]
        name = request.path.strip("/")
        self.asked.append((name, asked))
        if name == "slow":
            await asyncio.sleep(5)
        answer = {"uid": asked["uid"], **self.answers[name](asked)}
        return web.Response(body=orjson.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}))


@pytest.fixture
async def hooks(tmp_path: Path) -> AsyncIterator[Hooks]:
    pki = Pki(tmp_path / "hooks")
    pair = pki.apiserver(["hook.default.svc"])
    app = web.Application()
    runner = web.AppRunner(app)
    made = Hooks(0, base64.b64encode(pki.ca.cert.read_bytes()).decode())
    app.router.add_post("/{path}", made.handle)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(pair))
    await site.start()
    made.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield made
    finally:
        await runner.cleanup()


def patch(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"allowed": True, "patchType": "JSONPatch", "patch": base64.b64encode(orjson.dumps(operations)).decode()}


async def configure(cluster: Cluster, kind: str, *webhooks: dict[str, Any], name: str = "w") -> None:
    await cluster.make(f"{BASE}/{kind}webhookconfigurations", {"metadata": {"name": name}, "webhooks": list(webhooks)})


def config(name: str = "c", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}


async def test_a_validating_webhook_sees_and_refuses(cluster: Cluster, hooks: Hooks) -> None:
    hooks.answers["v"] = lambda r: {
        "allowed": "bad" not in (r["object"]["metadata"].get("labels") or {}),
        "status": {"message": "no bad ones", "code": 403},
        "warnings": ["hm"],
    }
    await configure(cluster, "validating", hooks.config("v"))
    status, _, answer = await cluster.raw("POST", MAPS, config(), user=ADMIN)
    assert status == 201 and any("hm" in w for w in cluster.warnings(answer))
    asked = hooks.asked[0][1]
    assert (
        asked["operation"] == "CREATE"
        and asked["kind"] == {"group": "", "version": "v1", "kind": "ConfigMap"}
        and asked["resource"]["resource"] == "configmaps"
    )
    assert asked["userInfo"]["username"] == "admin" and asked["object"]["data"] == {"a": "1"} and asked["oldObject"] is None and asked["dryRun"] is False
    assert asked["options"]["kind"] == "CreateOptions" and asked["namespace"] == "default" and asked["name"] == "c"
    status, answer = await cluster.call("POST", MAPS, config("x", bad="1"))
    assert (status, answer["message"]) == (403, 'admission webhook "a.example.com" denied the request: no bad ones')


async def test_mutating_webhooks_one_after_the_other(cluster: Cluster, hooks: Hooks) -> None:
    hooks.answers["one"] = lambda r: patch({"op": "add", "path": "/data/one", "value": str(len(r["object"]["data"]))})
    hooks.answers["two"] = lambda r: patch({"op": "add", "path": "/data/two", "value": str(len(r["object"]["data"]))})
    await configure(cluster, "mutating", hooks.config("one", reinvocationPolicy="IfNeeded"), hooks.config("two", "b.example.com"))
    made = await cluster.make(MAPS, config())
    assert made["data"] == {"a": "1", "one": "3", "two": "2"}  # one was asked again, as two had changed what it saw
    assert [name for name, _ in hooks.asked] == ["one", "two", "one"]


async def test_a_patch_that_does_not_fit(cluster: Cluster, hooks: Hooks) -> None:
    hooks.answers["m"] = lambda r: patch({"op": "remove", "path": "/data/nope"})
    await configure(cluster, "mutating", hooks.config("m"))
    status, answer = await cluster.call("POST", MAPS, config())
    assert status == 500 and 'failed calling webhook "a.example.com"' in answer["message"]


async def test_failure_policies(cluster: Cluster, hooks: Hooks) -> None:
    dead = {**hooks.config("gone"), "clientConfig": {"url": "https://127.0.0.1:1/x"}}
    await configure(cluster, "validating", dead)
    status, answer = await cluster.call("POST", MAPS, config())
    assert status == 500 and answer["message"].startswith(
        'Internal error occurred: failed calling webhook "a.example.com": failed to call webhook: Post "https://127.0.0.1:1/x"'
    )
    await cluster.call("PATCH", f"{BASE}/validatingwebhookconfigurations/w", {"webhooks": [{**dead, "failurePolicy": "Ignore"}]})
    assert (await cluster.call("POST", MAPS, config()))[0] == 201


async def test_an_answer_that_is_late_wrong_or_not_trusted(cluster: Cluster, hooks: Hooks) -> None:
    hooks.answers["slow"] = lambda r: {"allowed": True}
    hooks.answers["wrong"] = lambda r: {"allowed": True, "uid": "other"}
    cases = {
        "context deadline exceeded": hooks.config("slow", timeoutSeconds=1),
        "expected response.uid": hooks.config("wrong"),
        "certificate": {**hooks.config("wrong"), "clientConfig": {"url": f"https://127.0.0.1:{hooks.port}/wrong"}},
    }
    for why, spec in cases.items():
        await configure(cluster, "validating", spec)
        status, answer = await cluster.call("POST", MAPS, config())
        assert status == 500 and why in answer["message"], answer["message"]
        await cluster.call("DELETE", f"{BASE}/validatingwebhookconfigurations/w")


async def test_selectors_conditions_and_dry_runs(cluster: Cluster, hooks: Hooks) -> None:
    hooks.answers["v"] = lambda r: {"allowed": False}
    chosen = {
        "objectSelector": {"matchLabels": {"watch": "me"}},
        "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["default"]}]},
    }
    conditions = [{"name": "c", "expression": "object.metadata.name != 'spared'"}]
    await configure(cluster, "validating", hooks.config("v", matchConditions=conditions, sideEffects="NoneOnDryRun", **chosen))
    assert (await cluster.call("POST", MAPS, config("free")))[0] == 201
    assert (await cluster.call("POST", MAPS, config("spared", watch="me")))[0] == 201
    status, answer = await cluster.call("POST", MAPS, config("x", watch="me"))
    assert (status, answer["message"]) == (400, 'admission webhook "a.example.com" denied the request without explanation')
    assert (await cluster.call("POST", MAPS.replace("default", "kube-public"), config("x", watch="me")))[0] == 201
    assert (await cluster.call("POST", MAPS + "?dryRun=All", config("x", watch="me")))[0] == 400
    assert hooks.asked[-1][1]["dryRun"] is True


async def test_a_service_is_reached_at_its_ready_endpoints_by_its_name(hooks: Hooks) -> None:
    hooks.answers["v"] = lambda r: {"allowed": True}
    reader: Any = MemoryReader()
    caller = Caller(reader)
    client = {"service": {"namespace": "default", "name": "hook", "path": "/v"}, "caBundle": hooks.bundle}
    hook = Hook("w", {**hooks.config("v"), "clientConfig": client})
    try:
        with pytest.raises(Unreachable, match='service "hook" not found'):
            await caller.call(hook, {"uid": "u"})
        reader.put("v1/services", {"metadata": {"namespace": "default", "name": "hook"}, "spec": {"ports": [{"port": 443, "targetPort": 8443}]}})
        endpoints = {
            "metadata": {"namespace": "default", "name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
            "ports": [{"name": "", "port": hooks.port}],
        }
        reader.put("discovery.k8s.io/v1/endpointslices", {**endpoints, "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": False}}]})
        with pytest.raises(Unreachable, match='no endpoints available for service "hook"'):
            await caller.call(hook, {"uid": "u"})
        reader.put("discovery.k8s.io/v1/endpointslices", {**endpoints, "endpoints": [{"addresses": ["127.0.0.1"]}]})
        assert (await caller.call(hook, {"uid": "u"}))["allowed"] is True
        client["service"]["name"] = "other"  # the certificate does not speak for this one
        reader.put("v1/services", {"metadata": {"namespace": "default", "name": "other"}, "spec": {"ports": [{"port": 443}]}})
        endpoints["metadata"]["labels"]["kubernetes.io/service-name"] = "other"
        reader.put("discovery.k8s.io/v1/endpointslices", {**endpoints, "endpoints": [{"addresses": ["127.0.0.1"]}]})
        with pytest.raises(Unreachable, match=r"other\.default\.svc"):
            await caller.call(hook, {"uid": "u"})
    finally:
        await caller.close()


async def test_a_webhook_cannot_lend_its_rights(cluster: Cluster, hooks: Hooks) -> None:
    """What a webhook adds to a role is held to what its writer may grant."""
    from fastkube.server.request import User

    ref = "rbac.authorization.k8s.io"
    rules = [{"verbs": ["create"], "apiGroups": [ref], "resources": ["roles"]}]
    subject = {"kind": "User", "apiGroup": ref, "name": "joe"}
    await cluster.make(f"/apis/{ref}/v1/namespaces/default/roles", {"metadata": {"name": "own"}, "rules": rules})
    await cluster.make(
        f"/apis/{ref}/v1/namespaces/default/rolebindings",
        {"metadata": {"name": "own"}, "roleRef": {"apiGroup": ref, "kind": "Role", "name": "own"}, "subjects": [subject]},
    )
    hooks.answers["m"] = lambda r: patch({"op": "add", "path": "/rules/-", "value": {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}})
    await configure(
        cluster, "mutating", hooks.config("m", rules=[{"apiGroups": [ref], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["roles"]}])
    )
    status, answer = await cluster.call(
        "POST", f"/apis/{ref}/v1/namespaces/default/roles", {"metadata": {"name": "x"}, "rules": rules}, user=User("joe", ("system:authenticated",))
    )
    assert status == 403 and "attempting to grant RBAC permissions not currently held" in answer["message"]
