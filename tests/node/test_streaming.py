"""Logs, exec, attach and port-forward through the API server, as every client does them: WebSocket v4 and v5, SPDY/3.1, kubectl old and new."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import ssl
import subprocess
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
import pytest_asyncio

from fastkube.http import spdy, websocket
from tests.node.world import NODE_IP, World, container_status

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def web(world: World):
    web = {"name": "web", "image": "nginx:1.25", "readinessProbe": {"httpGet": {"port": 80}}}
    box = {"name": "box", "command": ["sh", "-c", "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; sleep 0.1; echo oops >&2; exec sleep 3600"]}
    await world.create("streams", {"containers": [box, web]})
    yield await world.ready("streams")
    await world.delete("streams")


# --- a client of our own, byte by byte ---


class Wire:
    """A TLS connection to the API server as a byte stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.head = b""

    @classmethod
    async def upgrade(cls, world: World, path: str, headers: dict[str, str], method: str = "GET") -> Wire:
        context = ssl.create_default_context(cafile=str(world.pki.ca.cert))
        admin = world.pki.client("admin")
        context.load_cert_chain(admin.cert, admin.key)
        wire = cls(*await asyncio.open_connection("127.0.0.1", world.server.addresses[0][1], ssl=context))
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: Upgrade", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        wire.write("\r\n".join(lines).encode())
        wire.head = await wire.reader.readuntil(b"\r\n\r\n")
        return wire

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    async def read(self) -> bytes:
        return await self.reader.read(65536)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def drain(self) -> None:
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


def exec_path(command: list[str], container: str = "box", **flags: str) -> str:
    query = [("container", container), *(("command", c) for c in command), *flags.items()]
    return f"/api/v1/namespaces/default/pods/streams/exec?{urlencode(query)}"


async def open_websocket(world: World, path: str, protocol: str) -> websocket.WebSocket:
    key = base64.b64encode(os.urandom(16)).decode()
    wire = await Wire.upgrade(
        world, path, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": protocol}
    )
    assert wire.status == 101, wire.head
    assert websocket.accept_key(key).encode() in wire.head and protocol.encode() in wire.head
    return websocket.WebSocket(wire, client=True)


async def collect(socket: websocket.WebSocket) -> dict[int, bytes]:
    out: dict[int, list[bytes]] = {}
    while (message := await asyncio.wait_for(socket.receive(), 20)) is not None:
        if message:
            out.setdefault(message[0], []).append(message[1:])
    return {channel: b"".join(parts) for channel, parts in out.items()}


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
async def test_exec_over_websocket(world: World, web: Any, protocol: str):
    socket = await open_websocket(world, exec_path(["sh", "-c", "echo out; echo err >&2; exit 3"], stdout="true", stderr="true"), protocol)
    got = await collect(socket)
    assert (got[1], got[2]) == (b"out\n", b"err\n")
    status = orjson.loads(got[3])
    assert status["status"] == "Failure" and status["reason"] == "NonZeroExitCode" and status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]


async def test_v5_closes_stdin(world: World, web: Any):
    socket = await open_websocket(world, exec_path(["md5sum"], stdin="true", stdout="true"), "v5.channel.k8s.io")
    data = os.urandom(1 << 20)
    for start in range(0, len(data), 65536):
        await socket.send(b"\0" + data[start : start + 65536])
    await socket.send(bytes((255, 0)))
    got = await collect(socket)
    import hashlib

    assert got[1].split()[0].decode() == hashlib.md5(data).hexdigest()
    assert orjson.loads(got[3])["status"] == "Success"


async def test_v5_terminal_and_its_size(world: World, web: Any):
    socket = await open_websocket(world, exec_path(["sh"], stdin="true", stdout="true", tty="true"), "v5.channel.k8s.io")
    await socket.send(b"\x04" + orjson.dumps({"Width": 91, "Height": 17}))
    await asyncio.sleep(0.3)
    await socket.send(b"\0stty size; exit\n")
    assert b"17 91" in (await collect(socket))[1]


async def test_large_output_arrives_whole(world: World, web: Any):
    socket = await open_websocket(world, exec_path(["head", "-c", "20000000", "/dev/zero"], stdout="true"), "v5.channel.k8s.io")
    got = await collect(socket)
    assert len(got[1]) == 20_000_000 and orjson.loads(got[3])["status"] == "Success"


async def spdy_events(wire: Wire, connection: spdy.Connection):
    while data := await asyncio.wait_for(wire.read(), 20):
        for event in connection.receive(data):
            yield event
        wire.write(connection.data_to_send())


async def test_exec_over_spdy(world: World, web: Any):
    headers = {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
    wire = await Wire.upgrade(world, exec_path(["sh", "-c", "cat; echo err >&2; exit 5"], stdin="true", stdout="true", stderr="true"), headers, "POST")
    assert wire.status == 101 and b"v4.channel.k8s.io" in wire.head, wire.head
    connection = spdy.Connection(client=True)
    streams = {connection.open({"streamType": kind}): kind for kind in ("error", "stdin", "stdout", "stderr")}
    stdin = next(i for i, kind in streams.items() if kind == "stdin")
    connection.send(stdin, b"hello " * 20000, ended=True)
    wire.write(connection.data_to_send())
    got = dict.fromkeys(streams.values(), b"")
    async for event in spdy_events(wire, connection):
        if isinstance(event, spdy.Data):
            got[streams[event.id]] += event.data
    assert got["stdout"] == b"hello " * 20000 and got["stderr"] == b"err\n"
    assert orjson.loads(got["error"])["details"]["causes"][0]["message"] == "5"


async def test_port_forward_over_spdy_and_websocket(world: World, web: Any):
    path = "/api/v1/namespaces/default/pods/streams/portforward"
    plain = await Wire.upgrade(world, path, {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "portforward.k8s.io"}, "POST")
    assert plain.status == 101
    tunnel = await open_websocket(world, path, "SPDY/3.1+portforward.k8s.io")

    class Tunnelled:
        async def read(self) -> bytes:
            while (message := await tunnel.receive()) == b"":
                pass
            return message or b""

    for read, send in ((plain.read, lambda data: plain.writer.write(data)), (Tunnelled().read, None)):
        connection = spdy.Connection(client=True)
        common = {"port": "80", "requestID": "0"}
        connection.open({"streamType": "error", **common}, ended=True)
        data = connection.open({"streamType": "data", **common})
        connection.send(data, b"GET / HTTP/1.0\r\n\r\n")
        if send:
            send(connection.data_to_send())
        else:
            await tunnel.send(connection.data_to_send())
        page = b""
        while b"</html>" not in page:
            for event in connection.receive(await asyncio.wait_for(read(), 10)):
                if isinstance(event, spdy.Data) and event.id == data:
                    page += event.data
        assert page.startswith(b"HTTP/1.1 200 OK")
    plain.close()
    tunnel.stream.close()


async def test_attach_and_its_status(world: World):
    await world.create(
        "attached", {"restartPolicy": "Never", "containers": [{"stdin": True, "stdinOnce": True, "command": ["sh", "-c", "read x; echo got $x; exit 4"]}]}
    )
    await world.ready("attached")
    socket = await open_websocket(world, "/api/v1/namespaces/default/pods/attached/attach?stdin=true&stdout=true&stderr=true", "v5.channel.k8s.io")
    await socket.send(b"\0word\n")
    assert (await collect(socket))[1] == b"got word\n"
    pod = await world.ended("attached")
    assert container_status(pod)["state"]["terminated"]["exitCode"] == 4
    await world.delete("attached")


async def test_log_options(world: World, web: Any):
    assert (await world.logs("streams", container="box", tailLines=2)).splitlines() == ["line 199", "oops"]
    assert (await world.logs("streams", container="box", limitBytes=10)) == "line 0\nlin"
    stamped = (await world.logs("streams", container="box", timestamps="true", tailLines=1)).split(" ", 1)
    assert stamped[0].startswith("20") and stamped[1] == "oops\n"
    assert (await world.logs("streams", container="box", sinceTime="2100-01-01T00:00:00Z")) == ""
    assert (await world.logs("streams", container="box", stream="Stderr")) == "oops\n"
    assert len((await world.logs("streams", container="box")).splitlines()) == 201
    status, _, body = await world.client.raw("GET", "/api/v1/namespaces/default/pods/streams/log?container=box&previous=true")
    assert status == 400 and orjson.loads(body)["message"] == 'previous terminated container "box" in pod "streams" not found'


async def test_follow_goes_through_rotation_to_the_end(world: World):
    script = "i=0; while [ $i -lt 6000 ]; do echo a line that is long enough to fill the file $i; i=$((i+1)); done; sleep 1; echo last"
    await world.create("chatty", {"restartPolicy": "Never", "containers": [{"command": ["sh", "-c", "sleep 0.5;" + script]}]})
    await world.ready("chatty")
    following = asyncio.create_task(world.logs("chatty", follow="true"))
    await asyncio.sleep(1.2)
    from fastkube.node import containerlogs

    run = next(c for p in world.agent.view.pods.values() if p.name == "chatty" for c in p.containers)
    assert await containerlogs.rotate(run.log_path, 1000, 3, lambda: world.agent.cri.reopen_log(run.id))
    text = await asyncio.wait_for(following, 20)
    assert len(text.splitlines()) == 6001 and text.endswith("last\n")
    await world.delete("chatty")


async def test_the_node_api_lets_nobody_in_without_leave(world: World):
    context = ssl.create_default_context(cafile=str(world.pki.ca.cert))

    async def ask(path: str, token: str = "", pair: Any = None) -> int:
        ours = ssl.create_default_context(cafile=str(world.pki.ca.cert)) if pair else context
        if pair:
            ours.load_cert_chain(pair.cert, pair.key)
        reader, writer = await asyncio.open_connection(NODE_IP, world.config.port, ssl=ours)
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: n\r\n{authorization}Connection: close\r\n\r\n".encode())
        head = await reader.read(4096)
        writer.close()
        return int(head.split()[1])

    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await world.client.create("v1/serviceaccounts", request, "default", name="default", subresource="token"))["status"]["token"]
    assert await ask("/pods") == 401 and await ask("/pods", "nonsense") == 401
    assert await ask("/pods", token) == 403
    assert await ask("/pods", pair=world.pki.client("scheduler")) == 403
    admin = world.pki.client("admin")
    assert [await ask(p, pair=admin) for p in ("/healthz", "/pods", "/stats/summary", "/metrics", "/metrics/resource", "/configz", "/nonsense")] == [
        200
    ] * 6 + [404]
    assert await ask("/exec/default/streams/box?command=id&output=1", pair=admin) == 400


async def test_statistics(world: World, web: Any):
    status, _, body = await world.client.raw("GET", "/api/v1/nodes/n1/proxy/stats/summary")
    assert status == 200
    pod = next(p for p in orjson.loads(body)["pods"] if p["podRef"]["name"] == "streams")
    assert {c["name"] for c in pod["containers"]} == {"web", "box"} and pod["memory"]["workingSetBytes"] > 0
    status, _, body = await world.client.raw("GET", "/api/v1/nodes/n1/proxy/metrics/resource")
    assert b'container_memory_working_set_bytes{container="web",namespace="default",pod="streams"}' in body and b"node_cpu_usage_seconds_total" in body


# --- kubectl, of whatever version is installed, and the official Python client ---


def kubectl(world: World, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["kubectl", f"--kubeconfig={world.directory}/admin.kubeconfig", *arguments], input=stdin, capture_output=True, timeout=60)


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed (Debian: kubernetes-client)")


@needs_kubectl
async def test_kubectl(world: World, web: Any):
    run = lambda *a, **k: asyncio.to_thread(kubectl, world, *a, **k)  # noqa: E731
    done = await run("exec", "-i", "streams", "-c", "box", "--", "sh", "-c", "cat; exit 9", stdin=b"piped")
    assert (done.stdout, done.returncode) == (b"piped", 9), done
    assert (await run("logs", "streams", "-c", "box", "--tail=1")).stdout == b"oops\n"
    source = world.directory / "source"
    source.write_bytes(os.urandom(3 << 20))
    assert (await run("cp", str(source), "streams:/tmp/copy", "-c", "box")).returncode == 0
    assert (await run("cp", "streams:/tmp/copy", str(world.directory / "back"), "-c", "box")).returncode == 0
    assert (world.directory / "back").read_bytes() == source.read_bytes()
    forward = subprocess.Popen(
        ["kubectl", f"--kubeconfig={world.directory}/admin.kubeconfig", "port-forward", "pod/streams", "21590:80"], stdout=subprocess.PIPE
    )
    try:
        await asyncio.to_thread(forward.stdout.readline)

        async def page() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", 21590)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

        for _ in range(3):
            assert b"Welcome to nginx" in await page()
    finally:
        forward.terminate()
        forward.wait()
        forward.stdout.close()


async def test_python_client(world: World, web: Any):
    from kubernetes import config
    from kubernetes.client import CoreV1Api
    from kubernetes.stream import stream

    def work() -> tuple[str, Any]:
        api = CoreV1Api(config.new_client_from_config(str(world.directory / "admin.kubeconfig")))
        session = stream(api.connect_get_namespaced_pod_exec, "streams", "default", container="box", command=["sh", "-c", "read x; echo $x; exit 2"],
                         stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)  # fmt: skip
        session.write_stdin("typed\n")
        session.run_forever(timeout=10)
        return session.read_stdout(), session.returncode

    assert await asyncio.to_thread(work) == ("typed\n", 2)
