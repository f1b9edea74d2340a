"""A control plane in one process for tests: the real API server on a store in memory, controllers through InProcessTransport, and nodes as
simple as can be: every pod is bound, runs and is ready (unless a test says otherwise), and goes when it is deleted."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client.informer import Informer, InformerFactory
from fastkube.client.rest import Client
from fastkube.client.transport import InProcessTransport
from fastkube.controllers import manager
from fastkube.controllers.cache import TRANSFORMS, slim
from fastkube.controllers.runtime import Context, Options
from fastkube.runtime import clock
from fastkube.runtime.tasks import Supervisor
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.server.request import User
from fastkube.store.embedded import EmbeddedStore

Object = dict[str, Any]
ADMIN = User("admin", ("system:masters", "system:authenticated"))


class World:
    def __init__(self, server: ApiServer, supervisor: Supervisor) -> None:
        self.server = server
        self.supervisor = supervisor
        self.writes: Counter[str] = Counter()  # "PUT replicasets" -> how many
        self.client = self.client_for("admin")
        self.options = Options(root_ca=b"CERTIFICATE", cluster_cidr="10.244.0.0/16", allocate_node_cidrs=True)
        self.controllers: dict[str, Any] = {}
        self.kubelet: Kubelet | None = None

    def client_for(self, name: str) -> Client:
        async def counted(request: Any) -> Any:
            if request.method != "GET":
                parts = request.path.split("/")
                skip = 3 if parts[1] == "api" else 4
                rest = parts[skip:]
                if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
                    rest = rest[2:]
                self.writes[f"{request.method} {rest[0]}"] += 1
            answer = self.server.handle(request)
            return await answer if asyncio.iscoroutine(answer) or asyncio.isfuture(answer) else answer

        return Client(InProcessTransport(counted, ADMIN, user_agent=name))

    async def start(self, *names: str) -> None:
        """Run the controllers of these names (upstream's)."""
        context = Context(InformerFactory(self.client_for("informers"), transforms=TRANSFORMS, default=slim), self.client_for, self.options, self.supervisor)
        for name in names:
            controller = manager.CONTROLLERS[name]()(context)
            self.controllers[name] = controller
            self.supervisor.start(name, controller.run)
        context.informers.start(self.supervisor)
        await context.informers.synced()

    async def run_pods(self, **settings: Any) -> Kubelet:
        self.kubelet = Kubelet(self.client_for("kubelet"), **settings)
        self.supervisor.start("kubelet", self.kubelet.run)
        self.supervisor.start("kubelet informer", self.kubelet.pods.run)
        await self.kubelet.pods.synced()
        return self.kubelet

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait until `condition()` (sync or async) is true; its value."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    value = condition()
                    value = await value if asyncio.iscoroutine(value) else value
                    if value:
                        return value
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError("it did not come about in time") from None

    async def rest(self, seconds: float = 0.4) -> Counter[str]:
        """What is written in so many seconds when nobody does anything; work still under way is let come to its end first."""
        for _ in range(20):
            before = Counter(self.writes)
            await asyncio.sleep(seconds)
            spent = self.writes - before
            if not spent:
                break
        return spent

    async def exists(self, resource: str, name: str, namespace: str | None = None) -> Object | None:
        try:
            return await self.client.get(resource, name, namespace)
        except ApiError as e:
            if e.code != 404:
                raise
            return None

    async def items(self, resource: str, namespace: str | None = "default", **selectors: str) -> list[Object]:
        return (await self.client.list(resource, namespace, **selectors))["items"]

    async def events(self, name: str) -> list[str]:
        """`Reason: message` of the events about an object, oldest first."""
        found = [e for e in await self.items("v1/events", None) if e["involvedObject"]["name"] == name]
        return [f"{e['reason']}: {e['message']}" for e in sorted(found, key=lambda e: e["metadata"]["name"])]


class Kubelet:
    """Runs every pod at once on node `node0`; `ready(pod)` says whether it becomes ready."""

    def __init__(self, client: Client, ready: Callable[[Object], bool] = lambda pod: True, nodes: int = 1) -> None:
        self.client = client
        self.ready = ready
        self.nodes = nodes
        self.pods = Informer(client, "v1/pods")
        self.pods.add_handler(lambda pod: self.todo.put_nowait(pod), lambda old, new: self.todo.put_nowait(new))
        self.todo: asyncio.Queue[Object] = asyncio.Queue()
        self.count = 0

    async def run(self) -> None:
        while True:
            pod = await self.todo.get()
            with contextlib.suppress(ApiError):
                await self.handle(pod)

    async def handle(self, pod: Object) -> None:
        meta = pod["metadata"]
        if "deletionTimestamp" in meta:
            await self.client.delete("v1/pods", meta["name"], meta["namespace"], grace_seconds=0, uid=meta["uid"])
            return
        if not pod["spec"].get("nodeName"):
            self.count += 1
            target = {"apiVersion": "v1", "kind": "Node", "name": f"node{self.count % self.nodes}"}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": meta["name"]}, "target": target}
            await self.client.create("v1/pods", binding, meta["namespace"], name=meta["name"], subresource="binding")
        elif (pod.get("status") or {}).get("phase", "Pending") == "Pending":
            await self.report(pod, self.ready(pod))

    async def report(self, pod: Object, ready: bool, phase: str = "Running") -> None:
        meta = pod["metadata"]
        number = int(meta["uid"].replace("-", "")[:4], 16)
        now = clock.rfc3339()
        ip = f"10.244.{number >> 8}.{number & 255}"
        conditions = [{"type": t, "status": "True" if ready else "False", "lastTransitionTime": now} for t in ("Ready", "ContainersReady")]
        status = {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "startTime": now, "conditions": conditions}
        await self.client.patch("v1/pods", meta["name"], {"status": status}, meta["namespace"], kind="strategic", subresource="status")


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    server = ApiServer(Config(bind_addresses=(), secure_port=0, authorization_mode=("Node", "RBAC")), EmbeddedStore(None))
    await server.start()
    supervisor = Supervisor("world")
    try:
        yield World(server, supervisor)
    finally:
        await _end(supervisor.close(), "controllers")
        await _end(server.close(), "server")


async def _end(closing: Any, what: str) -> None:
    """Everything stops when it is told to; what does not is shown."""
    done, _ = await asyncio.wait({asyncio.ensure_future(closing)}, timeout=10)
    if not done:
        for task in asyncio.all_tasks():
            task.print_stack()
        raise AssertionError(f"the {what} did not stop")
    done.pop().result()


def deployment(name: str = "web", replicas: int = 3, image: str = "web:1", **spec: Any) -> Object:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template, **spec},
    }
