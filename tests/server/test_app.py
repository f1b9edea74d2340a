"""The server as a process: health, metrics, version, start and end; kubectl; streams to a node."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess

import pytest

from fastkube.http.message import Response, Upgrade
from fastkube.http.server import Server
from fastkube.http.tls import server_context
from fastkube.server.app import ApiServer
from fastkube.server.config import Config, StartError
from fastkube.server.run import open_server
from fastkube.store.embedded import EmbeddedStore
from tests.server.conftest import ADMIN, MAPS, PODS, config, config_map, pod


async def test_health_and_version(api):
    for path in ("/healthz", "/livez", "/readyz"):
        assert await api.call("GET", path, token=None) == (200, "ok")
    assert (await api.call("GET", "/livez/ping", token=None))[0] == 403
    for path in ("/livez/ping", "/readyz/etcd"):
        assert await api.call("GET", path) == (200, "ok")
    _, text = await api.call("GET", "/readyz?verbose&exclude=etcd", token=None)
    assert "[+]ping ok\n" in text and "[+]etcd excluded: ok\n" in text and text.endswith("readyz check passed\n")
    assert (await api.call("GET", "/readyz/none"))[0] == 404
    assert (await api.call("GET", "/version", token=None))[1]["gitVersion"].startswith("v1.36.")
    assert await api.call("GET", "/bogus") == (404, "404 page not found\n")
    api.server.health.checks["etcd"] = lambda: "no"
    status, text = await api.call("GET", "/readyz", token=None)
    assert status == 500 and "[-]etcd failed: reason withheld\n" in text


async def test_the_root_lists_the_paths(api):
    status, answer = await api.call("GET", "/")
    assert status == 200
    assert {"/api/v1", "/apis/apps/v1", "/apis/apps", "/healthz", "/healthz/etcd", "/metrics", "/openapi/v3", "/version"} <= set(answer["paths"])
    assert answer["paths"] == sorted(answer["paths"])
    assert (await api.call("GET", "/", token=None))[0] == 403


async def test_metrics_have_upstreams_names(api):
    await api.make(MAPS, config_map("a"))
    await api.call("GET", f"{MAPS}/a")
    await api.call("GET", f"{MAPS}/none")
    _, text = await api.call("GET", "/metrics")
    assert (
        'apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="configmaps",scope="namespace",subresource="",verb="POST",version="v1"} 1\n'
        in text
    )
    assert 'verb="GET",version="v1"} 1' in text and "apiserver_request_duration_seconds_bucket{" in text and 'le="+Inf"' in text
    assert 'apiserver_storage_objects{resource="configmaps"}' in text and "process_resident_memory_bytes" in text
    assert (await api.call("GET", "/metrics", token="joe-token"))[0] == 403


async def test_every_answer_has_an_audit_id(api):
    ids = {(await api.raw("GET", "/api"))[1]["Audit-Id"] for _ in range(3)}
    assert len(ids) == 3
    assert (await api.raw("GET", "/api", headers={"Audit-Id": "mine"}))[1].getall("Audit-Id") == ["mine"]


async def test_watches_end_and_requests_finish_when_the_server_closes(pki, tokens):
    server = ApiServer(config(pki, tokens), EmbeddedStore(None))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.addresses[0][1], ssl=ssl.create_default_context(cafile=str(pki.ca.cert)))
    writer.write(f"GET {MAPS}?watch=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await server.close()
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"0\r\n\r\n")


async def test_what_is_stored_is_there_after_a_restart(pki, tokens, tmp_path):
    revision = 0
    for attempt in range(3):
        server = await open_server(config(pki, tokens, data_dir=tmp_path / "store"))
        try:
            store = server.store
            if attempt:
                assert [kv.key for kv in store.range(b"/registry/configmaps/default/", b"/registry/configmaps/default0").kvs] == [
                    b"/registry/configmaps/default/a"
                ]
                assert store.revision == revision, "a start over existing data writes nothing"
            else:
                await server.writer.create(server.served.find("", "v1", "configmaps"), {**config_map("a"), "metadata": {"name": "a", "namespace": "default"}})
            revision = store.revision
        finally:
            await server.close()


async def test_starts_that_cannot_be_say_why(pki, tokens, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = config(pki, tokens)
        busy.secure_port = taken.getsockname()[1]
        with pytest.raises(StartError, match=r"cannot listen on 127\.0\.0\.1"):
            await open_server(busy)
    bad = config(pki, tokens)
    bad.tls_cert_file = tmp_path / "absent.crt"
    with pytest.raises(StartError, match=r"absent\.crt"):
        await open_server(bad)
    with pytest.raises(StartError, match="only loopback"):
        await open_server(Config(secure_port=0, bind_addresses=["0.0.0.0"]))
    bad = config(pki, tokens)
    bad.authorization_mode = ["Magic"]
    with pytest.raises(StartError, match="Magic"):
        await open_server(bad)


async def test_several_addresses(pki, tokens):
    server = ApiServer(config(pki, tokens, bind_addresses=["127.0.0.1", "127.0.0.2"]), EmbeddedStore(None))
    await server.start()
    try:
        assert [host for host, _ in server.addresses] == ["127.0.0.1", "127.0.0.2"] and len({port for _, port in server.addresses}) == 1
    finally:
        await server.close()


# ---- kubectl


@pytest.fixture
async def kubectl(api, tmp_path):
    """Runs kubectl as the administrator; -> its output, or the error's."""
    path = tmp_path / "kubeconfig"
    path.write_text(api.pki.kubeconfig(api.url, api.pki.client("admin"), "admin"))
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("no kubectl on this machine (Debian: kubernetes-client)")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(path)}

    async def run(*args, stdin="", fails=False):
        process = await asyncio.create_subprocess_exec(binary, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        assert (process.returncode != 0) is fails, err.decode()
        return (err if fails else out).decode()

    run.api = api
    return run


async def test_kubectl_lives_an_objects_life(kubectl):
    assert "default" in await kubectl("get", "namespaces")
    assert await kubectl("create", "configmap", "c", "--from-literal=k=v") == "configmap/c created\n"
    assert (await kubectl("get", "cm", "c", "-o", "jsonpath={.data.k}")) == "v"
    assert await kubectl("label", "cm", "c", "a=b") == "configmap/c labeled\n"
    assert "a=b" in await kubectl("get", "cm", "--show-labels", "-l", "a in (b)")
    assert await kubectl("annotate", "cm", "c", "x=y") == "configmap/c annotated\n"
    assert await kubectl("patch", "cm", "c", "-p", '{"data":{"k":"w"}}') == "configmap/c patched\n"
    manifest = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}, "data": {"k": "1"}})
    assert await kubectl("apply", "-f", "-", stdin=manifest) == "configmap/d created\n"
    assert await kubectl("apply", "-f", "-", stdin=manifest) == "configmap/d unchanged\n"
    assert await kubectl("apply", "-f", "-", stdin=manifest.replace('"1"', '"2"')) == "configmap/d configured\n"
    assert await kubectl("apply", "--server-side", "-f", "-", stdin=manifest.replace('"d"', '"s"')) == "configmap/s serverside-applied\n"
    assert "unknown field" in await kubectl("apply", "-f", "-", stdin=manifest.replace('"data"', '"dota"'), fails=True)
    assert await kubectl("delete", "cm", "c", "d", "s") == 'configmap "c" deleted\nconfigmap "d" deleted\nconfigmap "s" deleted\n'
    assert "NotFound" in await kubectl("get", "cm", "c", fails=True)


async def test_kubectl_asks_about_the_api(kubectl):
    assert "deployments" in await kubectl("api-resources", "--api-group=apps")
    assert "apps/v1" in await kubectl("api-versions")
    assert "FIELD: image" in await kubectl("explain", "pod.spec.containers.image")
    assert "v1.36" in await kubectl("version")
    assert await kubectl("auth", "can-i", "create", "pods") == "yes\n"
    assert await kubectl("auth", "can-i", "create", "pods", "--as=joe", fails=True) == ""
    assert "kubernetes-admin" in await kubectl("auth", "whoami")
    assert "readyz check passed" in await kubectl("get", "--raw", "/readyz?verbose")


async def test_kubectl_workloads(kubectl):
    await kubectl("create", "serviceaccount", "default")
    assert await kubectl("create", "deployment", "web", "--image=nginx:1", "--replicas=2") == "deployment.apps/web created\n"
    assert await kubectl("scale", "deployment", "web", "--replicas=3") == "deployment.apps/web scaled\n"
    assert "0/3" in await kubectl("get", "deploy", "web")
    assert await kubectl("set", "image", "deployment/web", "nginx=nginx:2") == "deployment.apps/web image updated\n"
    assert await kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort") == "service/web exposed\n"
    assert "NodePort" in await kubectl("get", "svc", "web")
    assert await kubectl("run", "p", "--image=i", "--restart=Never") == "pod/p created\n"
    assert "Pending" in await kubectl("get", "pods", "-o", "wide")
    assert "Name:" in await kubectl("describe", "pod", "p")
    assert await kubectl("delete", "pod", "p", "--now") == 'pod "p" deleted\n'


# ---- streams to a node


@pytest.fixture
async def kubelet(api):
    """A node agent that answers with what it was asked, and the node object that says where it is."""
    pair = api.pki.node_serving("n1", ["127.0.0.1"])
    asked = []

    async def shout(stream):
        while data := await stream.read():
            stream.write(data.upper())
            await stream.drain()

    async def follow():
        yield b"line 1\n"
        yield b"line 2\n"

    def handler(request):
        asked.append(request)
        if "upgrade" in request.headers:
            return Upgrade(shout, [("Upgrade", request.headers["upgrade"]), ("X-Stream-Protocol-Version", "v4.channel.k8s.io")])
        if "missing" in request.path:
            return Response(404, b"container not found", "text/plain")
        return Response(200, follow() if "follow=true" in request.raw_query else request.target.encode(), "text/plain")

    server = Server(handler, server_context(pair.cert, pair.key, api.pki.ca.cert))
    _, port = await server.listen("127.0.0.1", 0)
    await api.make("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
    await api.make("/api/v1/nodes", {"metadata": {"name": "n1"}})
    status = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
    assert (await api.call("PATCH", "/api/v1/nodes/n1/status", {"status": status}))[0] == 200
    await api.make(PODS, pod("p", nodeName="n1"))
    server.asked = asked
    yield server
    await server.close()


async def test_logs_come_from_the_node(api, kubelet):
    _, headers, body = await api.raw("GET", f"{PODS}/p/log?follow=true&tailLines=5&container=c")
    assert body == b"line 1\nline 2\n" and headers["Content-Type"] == "text/plain"
    request = kubelet.asked[-1]
    assert request.target == "/containerLogs/default/p/c?follow=true&tailLines=5"
    assert "authorization" not in request.headers and request.peer_certificate
    assert (await api.raw("GET", f"{PODS}/p/log"))[2] == b"/containerLogs/default/p/c"
    status, answer = await api.call("GET", f"{PODS}/p/log?container=none")
    assert status == 400 and "container none is not valid for pod p" in answer["message"]
    assert (await api.call("GET", f"{PODS}/none/log"))[0] == 404
    await api.make(
        PODS, {"metadata": {"name": "two"}, "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "i"}, {"name": "missing", "image": "i"}]}}
    )
    status, answer = await api.call("GET", f"{PODS}/two/log")
    assert status == 400 and "choose one of: [a missing]" in answer["message"]
    assert (await api.call("GET", f"{PODS}/two/log?container=missing"))[0] == 404


@pytest.mark.parametrize("protocol", ["websocket", "SPDY/3.1"])
async def test_sessions_are_passed_through_as_bytes(api, kubelet, protocol):
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port, ssl=ssl.create_default_context(cafile=str(api.pki.ca.cert)))
    path = f"{PODS}/p/exec?command=sh&command=-c&command=a%20b&stdin=true&stdout=true&tty=false"
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101 ") and b"X-Stream-Protocol-Version: v4.channel.k8s.io" in head
    for data in (b"hello", b"x" * 300_000):
        writer.write(data)
        assert await asyncio.wait_for(reader.readexactly(len(data)), 5) == data.upper()
    assert kubelet.asked[-1].target == "/exec/default/p/c?command=sh&command=-c&command=a+b&input=1&output=1"
    writer.close()


async def test_sessions_that_cannot_be(api, kubelet):
    assert (await api.call("POST", f"{PODS}/p/exec?command=ls&stdout=true"))[0] == 400
    assert (await api.call("POST", f"{PODS}/p/exec?stdout=true", headers={"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}))[0] == 400
    await api.make(PODS, pod("unbound"))
    status, answer = await api.call("POST", f"{PODS}/unbound/attach?stdout=true", headers={"Connection": "Upgrade", "Upgrade": "SPDY/3.1"})
    assert status == 400 and "does not have a host assigned" in answer["message"]
    await kubelet.close()
    status, answer = await api.call("GET", f"{PODS}/p/log")
    assert status == 500 and "dial tcp 127.0.0.1" in answer["message"]


async def test_proxies(api, kubelet):
    assert (await api.raw("GET", "/api/v1/nodes/n1/proxy/stats/summary?only=1"))[2] == b"/stats/summary?only=1"

    def web(request):
        return Response(200, f"{request.method} {request.target} {request.headers.get('authorization')} {len(request.body)}".encode(), "text/plain")

    server = Server(web)
    _, port = await server.listen("127.0.0.1", 0)
    try:
        assert (await api.call("PATCH", f"{PODS}/p/status", {"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}))[0] == 200
        status, _, body = await api.raw("POST", f"{PODS}/p:{port}/proxy/a/b?c=d", b"hello", type="text/plain")
        assert (status, body) == (200, b"POST /a/b?c=d None 5")
        await api.make("/api/v1/namespaces/default/services", {"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}]}})
        assert (await api.call("GET", "/api/v1/namespaces/default/services/s:web/proxy/"))[0] == 503
        await api.make("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", {
            "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4", "ports": [{"name": "web", "port": port}], "endpoints": [{"addresses": ["10.9.9.9"]}],
        })  # fmt: skip
        assert api.server.streaming._endpoint(api.server.reader.get(api.server.served.find("", "v1", "services"), "default", "s"), "web") == ("10.9.9.9", port)
    finally:
        await server.close()
