"""Hot paths of client and controllers: what one pod event costs all of them together, one endpoint among thousands, one request over TLS-less HTTP.

.venv/bin/pytest bench/controllers --benchmark-only
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from fastkube.client.events import Correlator
from fastkube.client.http1 import Pool
from fastkube.client.informer import InformerFactory
from fastkube.client.rest import Client
from fastkube.client.workqueue import Workqueue
from fastkube.controllers import manager, rollout, victims
from fastkube.controllers.cache import TRANSFORMS, slim
from fastkube.controllers.runtime import Context, Options
from fastkube.controllers.slices import Layout, canonical
from fastkube.http.message import Response
from fastkube.http.server import Server
from fastkube.runtime.tasks import Supervisor

PODS = 3000
Object = dict[str, Any]


def pod_line(number: int, version: int, ready: bool) -> bytes:
    """A watch event of a pod of about 4 KB, as the API server sends it."""
    name = f"web-{number:05d}"
    meta = {
        "name": name, "namespace": "default", "uid": f"uid-{number}", "resourceVersion": str(version), "labels": {"app": "web", "pod-template-hash": "abc"},
        "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "m", "fieldsV1": {f"f:{i}": {} for i in range(60)}}],
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": True, "blockOwnerDeletion": True}],
    }  # fmt: skip
    container = {"name": "c", "image": "i", "env": [{"name": f"E{i}", "value": "x" * 20} for i in range(20)], "ports": [{"name": "http", "containerPort": 80}]}
    spec = {"nodeName": "n1", "containers": [container], "volumes": [{"name": f"v{i}", "emptyDir": {}} for i in range(5)], "tolerations": []}
    conditions = [
        {"type": t, "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:01Z"} for t in ("Ready", "ContainersReady", "Initialized", "PodScheduled")
    ]
    status = {
        "phase": "Running",
        "podIP": f"10.1.{number >> 8}.{number & 255}",
        "conditions": conditions,
        "containerStatuses": [{"name": "c", "ready": ready, "restartCount": 0}],
    }
    return orjson.dumps({"type": "MODIFIED", "object": {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}})


def test_a_pod_event_through_all_controllers(benchmark: Any) -> None:
    """Decoding, cutting down, storing, and every controller's handlers; reconciles not counted. Per event: divide by 1000."""

    async def main() -> None:
        context = Context(InformerFactory(Client(None), transforms=TRANSFORMS, default=slim), lambda name: Client(None), Options(), Supervisor("bench"))  # type: ignore[arg-type]
        for name in manager.select(["*"]):
            manager.CONTROLLERS[name]()(context)
        pods = context.informers.informer("v1/pods")
        for i in range(PODS):
            pods._event(orjson.loads(pod_line(i, i, False)))
        lines = [pod_line(i, PODS + i, True) for i in range(500)] + [pod_line(i, 2 * PODS + i, False) for i in range(500)]

        def run() -> None:
            for line in lines:
                pods._event(orjson.loads(line))

        benchmark(run)

    asyncio.run(main())


def test_one_endpoint_of_five_thousand(benchmark: Any) -> None:
    ports = canonical([{"name": "http", "port": 80, "protocol": "TCP"}])
    layout = Layout()
    layout.apply({("IPv4", f"ns/p{i}"): (ports, {"addresses": [str(i)], "conditions": {"ready": True}}) for i in range(5000)}, ["IPv4"], 100)
    flip = [False]

    def run() -> None:
        flip[0] = not flip[0]
        layout.apply({("IPv4", "ns/p2500"): (ports, {"addresses": ["2500"], "conditions": {"ready": flip[0]}})}, ["IPv4"], 100)

    benchmark(run)


def test_victims_of_three_thousand(benchmark: Any) -> None:
    pods = [orjson.loads(pod_line(i, i, i % 7 != 0))["object"] for i in range(PODS)]
    benchmark(lambda: victims.choose(pods, 500, pods, 1_800_000_000.0))


def test_rollout_step(benchmark: Any) -> None:
    spec = {"replicas": 1000, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}, "template": {"spec": {}}}
    deployment = {"metadata": {"name": "d", "generation": 1}, "spec": spec, "status": {}}
    sets = [
        {
            "metadata": {"name": f"s{i}", "creationTimestamp": f"2026-01-01T00:00:{i:02d}Z"},
            "spec": {"replicas": 100 * i, "template": {"spec": {"v": i}}},
            "status": {"availableReplicas": 90 * i},
        }
        for i in range(11)
    ]
    benchmark(lambda: rollout.shrink_old(deployment, sets[:10], sets[10]))


def test_workqueue_thousand_keys(benchmark: Any) -> None:
    async def main() -> None:
        queue = Workqueue()
        for i in range(1000):
            queue.add(i)
        for _ in range(1000):
            queue.done(await queue.get())

    loop = asyncio.new_event_loop()
    benchmark(lambda: loop.run_until_complete(main()))
    loop.close()


def test_event_correlation(benchmark: Any) -> None:
    correlator = Correlator()
    event = {
        "involvedObject": {"kind": "Pod", "name": "p", "uid": "u"},
        "source": {"component": "c"},
        "type": "Normal",
        "reason": "R",
        "message": "m",
        "count": 1,
        "lastTimestamp": "",
    }
    benchmark(lambda: correlator.correlate(dict(event), 0.0))


@pytest.mark.parametrize("count", [500])
def test_requests_over_a_socket(benchmark: Any, count: int) -> None:
    """Client and server in one process, without TLS. Per request: divide by `count`."""
    body = b'{"a":"' + b"x" * 3000 + b'"}'
    loop = asyncio.new_event_loop()

    async def start() -> tuple[Server, Pool]:
        server = Server(lambda request: Response(200, body))
        host, port = await server.listen("127.0.0.1", 0)
        return server, Pool(f"http://{host}:{port}")

    server, pool = loop.run_until_complete(start())

    async def run() -> None:
        await asyncio.gather(*(pool.request("POST", "/api/v1/pods", {"Content-Type": "application/json"}, body) for _ in range(count)))

    benchmark(lambda: loop.run_until_complete(run()))
    pool.close()
    loop.run_until_complete(server.close(0))
    loop.close()
