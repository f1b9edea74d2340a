"""Aggregation, with a real extension server over TLS: availability, identity, discovery, OpenAPI, streams; and local APIServices kept."""

import asyncio
import base64
import json
import ssl

import pytest
from aiohttp import WSMsgType, web

from fastkube.server import aggregation
from fastkube.server.app import ApiServer
from fastkube.server.request import User
from fastkube.store.embedded import EmbeddedStore

from .conftest import JOE, Api, config

SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
GROUP = "/apis/wares.example.com/v1"
LISTED = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": "wares.example.com/v1",
    "resources": [
        {"name": "flunders", "singularName": "flunder", "namespaced": True, "kind": "Flunder", "verbs": ["get", "list", "watch"], "shortNames": ["fl"]},
        {"name": "flunders/echo", "singularName": "", "namespaced": True, "kind": "Flunder", "verbs": ["get"]},
    ],
}
OPENAPI = {
    "swagger": "2.0",
    "paths": {
        f"{GROUP}/flunders": {
            "get": {"operationId": "listFlunders", "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/com.example.Flunder"}}}}
        },
        "/apis/other.example.com/v1/x": {},
    },
    "definitions": {"com.example.Flunder": {"type": "object"}, "io.k8s.apimachinery.pkg.version.Info": {"type": "object"}},
}


def answering(document):
    async def answer(request):
        return web.json_response(document)

    return answer


class Extension:
    """An extension server that remembers who asked."""

    def __init__(self, pki):
        self.asked = []
        app = web.Application()
        app.router.add_get("/apis", answering({"kind": "APIGroupList"}))
        app.router.add_get(GROUP, answering(LISTED))
        app.router.add_get("/openapi/v2", answering(OPENAPI))
        app.router.add_get(GROUP + "/namespaces/{ns}/flunders/ws/echo", self.echo)
        app.router.add_route("*", GROUP + "/{tail:.*}", self.flunders)
        self.runner = web.AppRunner(app)
        pair = pki.node_serving("flunder", ["flunder.default.svc"])
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.front_proxy_ca.cert))
        self.tls.verify_mode = ssl.CERT_REQUIRED
        self.tls.load_cert_chain(pair.cert, pair.key)
        self.port = 0

    async def start(self):
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def flunders(self, request):
        subject = dict(pair for part in request.transport.get_extra_info("peercert")["subject"] for pair in part)
        self.asked.append((request.method, request.raw_path, list(request.headers.items()), await request.read(), subject["commonName"]))
        if request.query.get("watch"):
            response = web.StreamResponse()
            await response.prepare(request)
            for i in range(3):
                await response.write(json.dumps({"type": "ADDED", "object": {"metadata": {"name": str(i)}}}).encode() + b"\n")
                await asyncio.sleep(0.02)
            return response
        return web.json_response({"kind": "FlunderList", "items": []}, status=201 if request.method == "POST" else 200)

    async def echo(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str("echo " + message.data)
        return socket


@pytest.fixture
async def extension(pki):
    made = Extension(pki)
    await made.start()
    yield made
    await made.runner.cleanup()


@pytest.fixture
async def api(api, pki, tokens):
    server = ApiServer(config(pki, tokens, proxy_client=pki.front_proxy_client()), EmbeddedStore(None))
    await server.start()
    yield Api(server, api.session, pki)
    await server.close()


async def until(check, seconds=10):
    async with asyncio.timeout(seconds):
        while not (found := await check()):
            await asyncio.sleep(0.05)
        return found


async def available(api, status, name="v1.wares.example.com"):
    async def check():
        _, obj = await api.call("GET", f"{SERVICES}/{name}")
        return next((c for c in (obj.get("status") or {}).get("conditions") or () if c["type"] == "Available" and c["status"] == status), None)

    return await until(check)


async def register(api, extension, pki, **more):
    await api.make("/api/v1/namespaces/default/services", {"metadata": {"name": "flunder"}, "spec": {"type": "ExternalName", "externalName": "localhost"}})
    bundle = more or {"caBundle": base64.b64encode(pki.ca.cert.read_bytes()).decode()}
    spec = {
        "group": "wares.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
        "service": {"name": "flunder", "namespace": "default", "port": extension.port}, **bundle,
    }  # fmt: skip
    return await api.make(SERVICES, {"metadata": {"name": "v1.wares.example.com"}, "spec": spec})


async def test_requests_go_on_with_the_users_identity_and_no_other(api, extension, pki):
    await register(api, extension, pki)
    assert (await available(api, "True"))["reason"] == "Passed"
    lies = {"X-Remote-User": "root", "X-Remote-Group": "system:masters", "X-Remote-Extra-a": "b", "X-Own": "kept"}
    status, answer = await api.call("POST", GROUP + "/namespaces/default/flunders?dryRun=All", {"a": 1}, headers=lies)
    assert (status, answer["kind"]) == (201, "FlunderList")
    method, path, headers, body, peer = extension.asked[-1]
    assert (method, path, json.loads(body), peer) == ("POST", GROUP + "/namespaces/default/flunders?dryRun=All", {"a": 1}, "front-proxy-client")
    said = [(k.lower(), v) for k, v in headers]
    assert [v for k, v in said if k == "x-remote-user"] == ["admin"] and ("x-own", "kept") in said
    assert [v for k, v in said if k == "x-remote-group"] == ["system:masters", "system:authenticated"]
    assert not any(k == "authorization" or k == "x-remote-extra-a" for k, _ in said)
    count = len(extension.asked)
    assert (await api.call("GET", GROUP + "/namespaces/default/flunders", token=JOE))[0] == 403
    assert len(extension.asked) == count


async def test_streams_pass(api, extension, pki):
    await register(api, extension, pki)
    await available(api, "True")
    watch = await api.watch(GROUP + "/namespaces/default/flunders?watch=true")
    assert await watch.types(3) == [("ADDED", "0"), ("ADDED", "1"), ("ADDED", "2")]
    async with api.session.ws_connect(api.url + GROUP + "/namespaces/default/flunders/ws/echo", headers={"Authorization": "Bearer admin-token"}) as socket:
        await socket.send_str("hello")
        assert (await asyncio.wait_for(socket.receive(), 5)).data == "echo hello"


async def test_discovery_and_openapi_are_merged(api, extension, pki):
    await register(api, extension, pki)
    await available(api, "True")
    _, groups = await api.call("GET", "/apis")
    assert [g["preferredVersion"] for g in groups["groups"] if g["name"] == "wares.example.com"] == [{"groupVersion": "wares.example.com/v1", "version": "v1"}]
    assert (await api.call("GET", "/apis/wares.example.com"))[1]["kind"] == "APIGroup"
    assert (await api.call("GET", GROUP))[1] == LISTED
    accept = {"Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}

    async def shown():
        _, whole = await api.call("GET", "/apis", headers=accept)
        return next(g for g in whole["items"] if g["metadata"]["name"] == "wares.example.com")["versions"][0]

    version = await shown()
    assert (version["version"], version["freshness"]) == ("v1", "Current")
    (resource,) = version["resources"]
    assert (resource["resource"], resource["scope"], resource["shortNames"], resource["subresources"][0]["subresource"]) == (
        "flunders",
        "Namespaced",
        ["fl"],
        "echo",
    )
    _, v2 = await api.call("GET", "/openapi/v2")
    assert f"{GROUP}/flunders" in v2["paths"] and "/apis/other.example.com/v1/x" not in v2["paths"] and "com.example.Flunder" in v2["definitions"]
    _, v3 = await api.call("GET", "/openapi/v3/apis/wares.example.com/v1")
    assert "com.example.Flunder" in v3["components"]["schemas"]
    await extension.runner.cleanup()
    assert (await api.call("GET", GROUP + "/flunders"))[0] == 503
    await available(api, "False")
    assert (await shown())["freshness"] == "Stale"
    status, answer = await api.call("GET", GROUP + "/flunders")
    assert (status, answer["reason"], answer["message"]) == (503, "ServiceUnavailable", "service unavailable")
    await api.call("DELETE", f"{SERVICES}/v1.wares.example.com")
    assert (await api.call("GET", GROUP + "/flunders"))[0] == 404
    assert "wares.example.com" not in json.dumps(await api.call("GET", "/apis"))


async def test_an_unknown_authority_is_not_trusted_unless_told(api, extension, pki):
    made = await register(api, extension, pki, insecureSkipTLSVerify=False)
    condition = await available(api, "False")
    assert condition["reason"] == "FailedDiscoveryCheck" and "certificate verify failed" in condition["message"]
    made = (await api.call("GET", f"{SERVICES}/v1.wares.example.com"))[1]
    assert (await api.call("PATCH", f"{SERVICES}/{made['metadata']['name']}", {"spec": {"insecureSkipTLSVerify": True}}))[0] == 200
    await available(api, "True")


async def test_conditions_say_what_is_missing(api, extension, pki):
    spec = {"group": "x.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15, "service": {"name": "gone", "namespace": "default"}}
    await api.make(SERVICES, {"metadata": {"name": "v1.x.example.com"}, "spec": {**spec, "insecureSkipTLSVerify": True}})
    assert (await available(api, "False", "v1.x.example.com"))["reason"] == "ServiceNotFound"

    async def reason():
        return (await available(api, "False", "v1.x.example.com"))["reason"]

    services = "/api/v1/namespaces/default/services"
    await api.make(services, {"metadata": {"name": "gone"}, "spec": {"ports": [{"name": "a", "port": 80}]}})
    await until(lambda: same(reason, "ServicePortError"))
    await api.call("PATCH", f"{services}/gone", [{"op": "replace", "path": "/spec/ports/0/port", "value": 443}], type="application/json-patch+json")
    await until(lambda: same(reason, "EndpointsNotFound"))
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    meta = {"name": "gone-1", "labels": {"kubernetes.io/service-name": "gone"}}
    await api.make(
        slices,
        {
            "metadata": meta,
            "addressType": "IPv4",
            "ports": [{"name": "a", "port": 1}],
            "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": False}}],
        },
    )
    await until(lambda: same(reason, "MissingEndpoints"))


async def same(reason, wanted):
    return await reason() == wanted


async def test_local_ones_are_listed_and_follow_custom_resources(api):
    async def listed():
        _, answer = await api.call("GET", SERVICES)
        return {o["metadata"]["name"]: o for o in answer["items"]}

    async def has(name, there):
        return (name in await listed()) is there

    await until(lambda: has("v1.storage.k8s.io", True))
    core = (await listed())["v1."]
    assert core["spec"] == {"version": "v1", "groupPriorityMinimum": 18000, "versionPriority": 1}
    assert [(c["status"], c["reason"]) for c in core["status"]["conditions"]] == [("True", "Local")]
    names = {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    spec = {"group": "t.example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    await api.make(definitions, {"metadata": {"name": "things.t.example.com"}, "spec": spec})
    await until(lambda: has("v1.t.example.com", True))
    await api.call("DELETE", f"{definitions}/things.t.example.com")
    await until(lambda: has("v1.t.example.com", False))
    await api.call("DELETE", f"{SERVICES}/v1.apps")
    await until(lambda: has("v1.apps", True))


def test_identity_cannot_break_out_of_its_header():
    headers = aggregation.identity(User("a\r\nX-Remote-User: root", ("g\n",), "u", {"example.com/k": ("v\r\nx",)}))
    assert all("\r" not in v and "\n" not in v for _, v in headers)
    assert headers[-1][0] == "X-Remote-Extra-example.com%2Fk"
