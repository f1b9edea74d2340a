"""A node for tests: containerd, the agent with its server, and a real API server, all in a network namespace without a way out."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkube.api.errors import ApiError
from fastkube.client import kubeconfig
from fastkube.client.rest import Client
from fastkube.node import images, mounts
from fastkube.node.agent import Agent
from fastkube.node.config import NodeConfig
from fastkube.node.containerd import Containerd
from fastkube.node.server.app import NodeServer
from fastkube.runtime.pki import Pki
from fastkube.server.app import ApiServer
from fastkube.server.config import Config
from fastkube.server.run import open_server

NODE = "n1"
NODE_IP = "10.245.0.1"
IMAGES = ["pause", "busybox:1.36", "nginx:1.25", "nginx:1.26"]
CLONE_NEWNET = 0x40000000

Object = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """This thread (and what it starts) in a network namespace of its own, with loopback and the node's address; back again at the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        script = f"ip link set lo up && ip link add node0 type bridge && ip addr add {NODE_IP}/24 dev node0 && ip link set node0 up"
        subprocess.run(["sh", "-c", script], check=True)
        yield
    finally:
        assert _libc.setns(home, CLONE_NEWNET) == 0
        os.close(home)


async def until(what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until `condition()` (a value or an awaitable of one) is true; AssertionError naming `what` when it is not in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    last: Any = None
    while asyncio.get_running_loop().time() < deadline:
        last = condition()
        if isinstance(last, Awaitable):
            last = await last
        if last:
            return last
        await asyncio.sleep(0.03)
    raise AssertionError(f"{what}: not within {seconds:.0f} s; last: {last!r}")


@dataclass
class World:
    directory: Path
    containerd: Containerd
    pki: Pki
    server: ApiServer
    client: Client
    config: NodeConfig
    agent: Agent | None = None
    node_server: NodeServer | None = None

    # --- the agent ---

    async def start_agent(self) -> None:
        client = kubeconfig.load(self.directory / "kubelet.kubeconfig", user_agent="kubelet-test")
        self.agent = Agent(self.config, client, self.client)
        self.node_server = NodeServer(self.agent)
        self.config.port = (await self.node_server.start())[1]
        await self.agent.start()

    async def stop_agent(self) -> None:
        assert self.agent and self.node_server
        await self.node_server.close()
        await self.agent.close()
        await self.agent.client.close()
        self.agent = None

    # --- pods ---

    async def pod(self, name: str) -> Object | None:
        try:
            return await self.client.get("v1/pods", name, "default")
        except ApiError as e:
            if e.code == 404:
                return None
            raise

    async def create(self, name: str, spec: Object, **meta: Any) -> Object:
        """A pod bound to the node; `containers` may leave out what does not matter."""
        spec = {"nodeName": NODE, "terminationGracePeriodSeconds": 2, **spec}
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            container.setdefault("name", "c")
            container.setdefault("image", "busybox:1.36")
        return await self.client.create("v1/pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **meta}, "spec": spec}, "default")

    async def reaches(self, name: str, condition: Callable[[Object], Any], seconds: float = 30.0) -> Object:
        async def look() -> Any:
            pod = await self.pod(name)
            return pod if pod is not None and condition(pod) else None

        try:
            return await until(f"pod {name}", look, seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}; status: {(await self.pod(name) or {}).get('status')}") from None

    async def ready(self, name: str, seconds: float = 30.0) -> Object:
        return await self.reaches(name, lambda p: condition_of(p, "Ready") == "True", seconds)

    async def ended(self, name: str, seconds: float = 30.0) -> Object:
        return await self.reaches(name, lambda p: p["status"].get("phase") in ("Succeeded", "Failed"), seconds)

    async def delete(self, *names: str) -> None:
        """Delete pods and wait until nothing of them is left on the node."""
        for name in names:
            with contextlib.suppress(ApiError):
                await self.client.delete("v1/pods", name, "default")
        for name in names:
            await until(f"pod {name} gone", lambda name=name: self._gone(name))

    async def _gone(self, name: str) -> bool:
        assert self.agent
        return await self.pod(name) is None and not any(p.name == name for p in self.agent.view.pods.values())

    async def logs(self, name: str, **query: Any) -> str:
        text = "&".join(f"{k}={v}" for k, v in query.items())
        status, _, body = await self.client.raw("GET", f"/api/v1/namespaces/default/pods/{name}/log?{text}")
        assert status == 200, (status, body)
        return body.decode()

    async def output(self, name: str, spec: Object, **meta: Any) -> str:
        """What a pod that runs once says; the pod is deleted then."""
        await self.create(name, {"restartPolicy": "Never", **spec}, **meta)
        await self.ended(name)
        text = await self.logs(name)
        await self.delete(name)
        return text

    async def events(self, name: str) -> list[Object]:
        items = (await self.client.list("v1/events", "default", fields=f"involvedObject.name={name}"))["items"]
        return sorted(items, key=lambda e: e["metadata"]["name"])

    async def has_event(self, name: str, reason: str, text: str = "") -> Object:
        async def look() -> Any:
            return next((e for e in await self.events(name) if e["reason"] == reason and text in e["message"]), None)

        return await until(f"event {reason} {text!r} of {name}", look, 10)

    def exec(self, pod: str, command: list[str], container: str = "c") -> Awaitable[Any]:
        """Straight through the runtime, for looking into containers."""
        assert self.agent
        run = next(c for p in self.agent.view.pods.values() if p.name == pod for c in p.containers if c.name == container and c.running)
        return self.agent.cri.exec_sync(run.id, command, 10)


def condition_of(pod: Object, kind: str) -> str:
    return next((c["status"] for c in pod.get("status", {}).get("conditions") or () if c["type"] == kind), "")


def container_status(pod: Object, name: str = "c", where: str = "containerStatuses") -> Object:
    return next((s for s in pod.get("status", {}).get(where) or () if s["name"] == name), {})


@contextlib.asynccontextmanager
async def new_world(directory: Path) -> AsyncIterator[World]:
    """Everything up and the node ready; at the end nothing is left."""
    pki = Pki(directory / "pki")
    serving = pki.apiserver([NODE_IP])
    config = Config(
        data_dir=directory / "store", secure_port=0, fsync=False, tls_cert_file=serving.cert, tls_private_key_file=serving.key, client_ca_file=pki.ca.cert,
        service_account_key_files=[pki.sa_pub], service_account_signing_key_file=pki.sa_key, kubelet_client=pki.client("apiserver-kubelet-client"),
        kubelet_certificate_authority=pki.ca.cert,
    )  # fmt: skip
    server = await open_server(config)
    url = f"https://127.0.0.1:{server.addresses[0][1]}"
    (directory / "admin.kubeconfig").write_text(pki.kubeconfig(url, pki.client("admin"), "admin"))
    (directory / "kubelet.kubeconfig").write_text(pki.kubeconfig(url, pki.node_client(NODE), "kubelet"))
    client = kubeconfig.load(directory / "admin.kubeconfig")
    containerd = Containerd(directory / "node")
    node_serving = pki.node_serving(NODE, [NODE_IP])
    node = NodeConfig(
        name=NODE, hostname=NODE, node_ips=[NODE_IP], root_dir=directory / "node", runtime_endpoint=containerd.endpoint, pod_cidr="10.244.7.0/24",
        static_pod_path=directory / "manifests", cni_conf_dir=containerd.cni_conf_dir, pod_logs_dir=directory / "node" / "logs", address=NODE_IP, port=0,
        cgroup_root=f"/fktest-{secrets.token_hex(4)}", tls_cert_file=node_serving.cert, tls_key_file=node_serving.key, client_ca_file=pki.ca.cert,
        cluster_dns=["10.96.0.10"], cluster_domain="cluster.local", container_log_max_bytes=64 * 1024,
    )  # fmt: skip
    (directory / "manifests").mkdir()
    world = World(directory, containerd, pki, server, client, node)
    try:
        await containerd.start()
        await images.import_archives(containerd.endpoint, images.build(IMAGES, directory / "images"))
        await _account(client)
        await world.start_agent()
        await until("node ready", lambda: _node_ready(client))
        yield world
    finally:
        agent = world.agent
        if agent is not None:
            await world.stop_agent()
        await containerd.remove_all()
        if agent is not None and agent.network is not None:
            await agent.network.remove()
        await client.close()
        await server.close()
        left = [*mounts.points_below(directory), *(d for p in Path("/sys/fs/cgroup").glob(f"*{node.cgroup_root}") for d, _, _ in os.walk(p))]
        assert not left, left
        shutil.rmtree(directory, ignore_errors=True)


async def _account(client: Client) -> None:
    """What the service account controllers would make."""
    await client.create("v1/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}, "default")
    await client.create(
        "v1/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "none"}}, "default"
    )


async def _node_ready(client: Client) -> bool:
    try:
        return condition_of(await client.get("v1/nodes", NODE), "Ready") == "True"
    except ApiError:
        return False
