"""Probes against real servers, and tokens that are asked for again in time."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fastkube.http.message import Response
from fastkube.http.server import Server
from fastkube.http.tls import server_context
from fastkube.node.model import Container
from fastkube.node.objects import Tokens
from fastkube.node.probes import Actions
from fastkube.node.server.app import self_signed
from fastkube.runtime import clock

RUN = Container("id", "c", "s")
SPEC = {"name": "c", "ports": [{"name": "web", "containerPort": 0}]}


async def probe(action: dict[str, Any], seconds: float = 1.0) -> Any:
    actions = Actions(None)  # type: ignore[arg-type]
    try:
        return await actions.run(action, SPEC, RUN, "127.0.0.1", seconds)
    finally:
        await actions.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_http(tmp_path: Path, tls: bool):
    seen = {}

    async def answer(request: Any) -> Response:
        seen.update(request.headers, path=request.target)
        if request.path == "/slow":
            await asyncio.sleep(5)
        return Response({"/ok": 200, "/moved": 302, "/slow": 200}.get(request.path, 500), b"body", headers=[("Location", "http://192.0.2.1/")])

    context: ssl.SSLContext | None = server_context(*self_signed(tmp_path, ["localhost"])) if tls else None
    server = Server(answer, context)
    _, port = await server.listen("127.0.0.1", 0)
    action = lambda path, **more: {"httpGet": {"port": port, "path": path, "scheme": "HTTPS" if tls else "HTTP", **more}}  # noqa: E731
    ok = await probe(action("/ok?x=%2F", httpHeaders=[{"name": "X-A", "value": "b"}]))
    assert ok.success and seen["x-a"] == "b" and seen["user-agent"] == "kube-probe/1.36" and seen["path"] == "/ok?x=%2F"
    assert (await probe(action("/moved"))).success  # a redirect is an answer
    assert (await probe(action("/bad"))).text == "HTTP probe failed with statuscode: 500"
    slow = await probe(action("/slow"), 0.2)
    assert not slow.success and "context deadline exceeded (Client.Timeout exceeded while awaiting headers)" in slow.text
    await server.close()
    gone = await probe(action("/ok"))
    assert gone.text == f'Get "{"https" if tls else "http"}://127.0.0.1:{port}/ok": dial tcp 127.0.0.1:{port}: connect: connection refused'


async def test_tcp():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await probe({"tcpSocket": {"port": port}})).success
    server.close()
    await server.wait_closed()
    assert (await probe({"tcpSocket": {"port": port}})).text == f"dial tcp 127.0.0.1:{port}: connect: connection refused"


async def test_grpc():
    class Health(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            async def check(request: bytes, context: Any) -> bytes:
                return {b"": b"\x08\x01", b"\x0a\x03bad": b"\x08\x02"}.get(request, b"\x08\x03")

            return grpc.unary_unary_rpc_method_handler(check) if details.method == "/grpc.health.v1.Health/Check" else None

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Health(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert (await probe({"grpc": {"port": port}})).success
    assert (await probe({"grpc": {"port": port, "service": "bad"}})).text == 'service unhealthy (responded with "NOT_SERVING")'
    assert not (await probe({"grpc": {"port": port, "service": "none"}})).success
    await server.stop(None)
    assert not (await probe({"grpc": {"port": port}}, 0.5)).success


async def test_nonsense_is_an_error_not_a_crash():
    for action in ({}, {"httpGet": {}}, {"tcpSocket": {"port": "nameless"}}):
        result = await probe(action)
        assert not result.success


async def test_tokens_are_kept_and_asked_for_again_before_they_expire():
    class Api:
        asked: list[Any] = []

        async def create(self, resource: str, obj: Any, namespace: str, *, name: str, subresource: str) -> Any:
            self.asked.append((namespace, name, obj["spec"]))
            return {"status": {"token": f"t{len(self.asked)}", "expirationTimestamp": clock.rfc3339(clock.now() + 600)}}

    class Later:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def now(self) -> float:
            return 1e9 + self.seconds

        def monotonic(self) -> float:
            return self.seconds

    api = Api()
    tokens = Tokens(api)  # type: ignore[arg-type]
    pod = {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"serviceAccountName": "sa"}}
    real = clock.use(Later(0))
    try:
        token, again = await tokens.get(pod, "", 600)
        assert token == "t1" and 460 <= again <= 480
        clock.use(Later(400))
        assert (await tokens.get(pod, "", 600))[0] == "t1"
        clock.use(Later(500))
        assert (await tokens.get(pod, "", 600))[0] == "t2"
        assert (await tokens.get(pod, "other", 600))[0] == "t3"
    finally:
        clock.use(real)
    assert api.asked[0] == (
        "ns",
        "sa",
        {"audiences": [], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "u"}},
    )
