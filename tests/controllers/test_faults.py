"""Convergence: on virtual time, from a seed, with requests that fail before or after they were carried out, watches that are cut, and controllers
that are killed and started again, the world still comes to be as the spec says, and then nothing more is written."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from fastkube.client.informer import InformerFactory
from fastkube.client.rest import Client
from fastkube.client.transport import Answer, ConnectionFailed
from fastkube.controllers import manager
from fastkube.controllers.cache import TRANSFORMS, slim
from fastkube.controllers.meta import controller_uid, is_active, is_ready
from fastkube.controllers.runtime import Context
from fastkube.runtime.tasks import Supervisor
from fastkube.testing import virtual
from tests.controllers.test_services import service
from tests.controllers.world import World, deployment, world

NAMES = (
    "serviceaccount-controller", "deployment-controller", "replicaset-controller", "endpoints-controller", "endpointslice-controller", "statefulset-controller",
    "job-controller", "garbage-collector-controller",
)  # fmt: skip
SEEDS = range(6)


class Faulty:
    """A transport that loses requests, loses answers, and cuts streams, by the dice of `rng`, while `on`."""

    def __init__(self, transport: Any, rng: random.Random) -> None:
        self._transport, self._rng = transport, rng
        self.on = True

    def _loses(self, share: float) -> bool:
        return self.on and self._rng.random() < share

    async def request(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        await asyncio.sleep(self._rng.random() * 0.02)
        if self._loses(0.03):
            raise ConnectionFailed("lost on the way there")
        answer = await self._transport.request(method, target, body, headers)
        if self._loses(0.03):
            raise ConnectionFailed("lost on the way back")
        return answer

    async def stream(self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        if self._loses(0.1):
            raise ConnectionFailed("lost on the way there")
        return _Cut(await self._transport.stream(method, target, body, headers), self)

    async def close(self) -> None:
        await self._transport.close()


class _Cut:
    def __init__(self, stream: Any, faults: Faulty) -> None:
        self._stream, self._faults = stream, faults
        self.status, self.headers = stream.status, stream.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            if self._faults._loses(0.02):
                raise ConnectionFailed("cut")
            yield chunk

    async def read(self) -> bytes:
        return await self._stream.read()

    async def close(self) -> None:
        await self._stream.close()


class Managers:
    """Controllers behind faulty transports, which can be killed at any await and started anew with empty caches."""

    def __init__(self, w: World, rng: random.Random) -> None:
        self._w, self._rng = w, rng
        self.transports: list[Faulty] = []
        self._supervisor: Supervisor | None = None

    def _client(self, name: str) -> Client:
        transport = Faulty(self._w.client_for(name).transport, self._rng)
        self.transports.append(transport)
        return Client(transport)

    def start(self) -> None:
        self._supervisor = Supervisor("managers")
        informers = InformerFactory(self._client("informers"), transforms=TRANSFORMS, default=slim)
        context = Context(informers, self._client, self._w.options, self._supervisor)
        for name in NAMES:
            self._supervisor.start(name, manager.CONTROLLERS[name]()(context).run)
        informers.start(self._supervisor)

    async def kill(self) -> None:
        assert self._supervisor is not None
        await self._supervisor.close()

    def calm(self) -> None:
        for transport in self.transports:
            transport.on = False


def job(name: str) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": template, "completions": 2, "parallelism": 2},
    }


def stateful(name: str, replicas: int) -> dict[str, Any]:
    base = deployment(name, replicas)
    return {**base, "kind": "StatefulSet", "spec": {**base["spec"], "serviceName": name}}


async def act(w: World, rng: random.Random) -> None:
    """One thing that a user does."""
    what = rng.choice(["scale", "image", "kill pod", "scale set", "unready"])
    if what == "scale":
        await w.client.patch("apps/v1/deployments", "web", {"spec": {"replicas": rng.randrange(9)}}, "default")
    elif what == "image":
        containers = [{"name": "c", "image": f"web:{rng.randrange(4)}"}]
        await w.client.patch("apps/v1/deployments", "web", {"spec": {"template": {"spec": {"containers": containers}}}}, "default", kind="strategic")
    elif what == "scale set":
        await w.client.patch("apps/v1/statefulsets", "db", {"spec": {"replicas": rng.randrange(5)}}, "default")
    else:
        pods = await w.items("v1/pods")
        if pods:
            pod = rng.choice(pods)
            if what == "kill pod":
                await w.client.delete("v1/pods", pod["metadata"]["name"], "default")
            elif w.kubelet and is_active(pod) and pod["spec"].get("nodeName"):
                await w.kubelet.report(pod, False)
                await w.kubelet.report(pod, True)


async def check(w: World) -> None:
    """The world is as the spec says."""
    web, db = await w.client.get("apps/v1/deployments", "web", "default"), await w.client.get("apps/v1/statefulsets", "db", "default")
    pods = await w.items("v1/pods")
    sets = {s["metadata"]["uid"]: s for s in await w.items("apps/v1/replicasets")}
    wanted = web["spec"]["replicas"]
    of_web = [p for p in pods if controller_uid(p) in sets and is_active(p)]
    assert len(of_web) == wanted
    assert {p["spec"]["containers"][0]["image"] for p in of_web} <= {web["spec"]["template"]["spec"]["containers"][0]["image"]}
    assert web["status"].get("availableReplicas", 0) == wanted == web["status"].get("updatedReplicas", 0)
    assert web["status"]["observedGeneration"] == web["metadata"]["generation"]
    names = sorted(p["metadata"]["name"] for p in pods if controller_uid(p) == db["metadata"]["uid"])
    assert names == [f"db-{i}" for i in range(db["spec"]["replicas"])]
    assert db["status"].get("readyReplicas", 0) == db["spec"]["replicas"]
    slices = await w.items("discovery.k8s.io/v1/endpointslices", labels="kubernetes.io/service-name=web")
    shown = Counter(e["targetRef"]["uid"] for s in slices for e in s.get("endpoints") or () if e["conditions"]["ready"])
    assert shown == Counter(p["metadata"]["uid"] for p in of_web if is_ready(p)), "each ready pod is shown once"
    done = await w.client.get("batch/v1/jobs", "sum", "default")
    mine = [p for p in pods if controller_uid(p) == done["metadata"]["uid"]]
    assert len([p for p in mine if is_active(p)]) <= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_it_comes_to_be_as_the_spec_says(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        async with world() as w:
            managers = Managers(w, rng)
            managers.start()
            await w.run_pods()
            await w.until(lambda: w.exists("v1/serviceaccounts", "default", "default"), 300)
            await w.client.create("v1/services", service())
            await w.client.create("apps/v1/deployments", deployment(replicas=4))
            await w.client.create("apps/v1/statefulsets", stateful("db", 2))
            await w.client.create("batch/v1/jobs", job("sum"))
            for _ in range(12):
                await act(w, rng)
                await asyncio.sleep(rng.random() * 3)
                if rng.random() < 0.25:
                    await managers.kill()
                    await asyncio.sleep(rng.random())
                    managers.start()
            managers.calm()
            await asyncio.sleep(900)  # longer than any back-off and any expectation that a lost answer left behind
            await check(w)
            before = Counter(w.writes)
            await asyncio.sleep(600)
            assert not w.writes - before, "a quiet cluster writes nothing"
            await managers.kill()

    virtual.run(main(), seed=seed)
