"""Runs inside the virtual machine (test_ipvs.py starts it there): the IPVS driver on a kernel that has ip_vs, with real packets."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastkube.proxy.config import Config
from fastkube.proxy.diff import Programmed
from fastkube.proxy.ipvs import IpvsDriver, missing
from fastkube.proxy.model import Backend, Frontend, Rules, Target
from fastkube.proxy.nftables import Nft
from tests.proxy.conftest import world  # noqa: F401
from tests.proxy.netns import World

A, B = Backend("10.244.0.2", 8080), Backend("10.244.0.3", 8080)
VIP, UDP_VIP = Frontend("10.96.0.1", "tcp", 80), Frontend("10.96.0.1", "udp", 80)
NODE_PORT = Frontend("0.0.0.0", "tcp", 30080)
NODE, BRIDGE, OUTSIDE = "192.0.2.2", "10.244.0.1", "192.0.2.1"
CLONE_NEWNET = 0x40000000


class Kernel:
    """The driver, its netlink thread moved into the node's namespace."""

    def __init__(self, world: World) -> None:  # noqa: F811
        self.world = world
        self.programmed = Programmed()
        self.driver = self.fresh_driver()

    def fresh_driver(self, scheduler: str = "rr") -> IpvsDriver:
        config = Config(cluster_cidrs=["10.244.0.0/16"], ipvs_scheduler=scheduler)
        driver = IpvsDriver(config, Nft(("ip", "netns", "exec", self.world.node, "nft"), f"/run/netns/{self.world.node}"))
        driver._thread.submit(self._enter).result()
        return driver

    def _enter(self) -> None:
        fd = os.open(f"/run/netns/{self.world.node}", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) == 0
        os.close(fd)

    async def set(self, rules: Rules, name: str = "web") -> None:
        await self.driver.change(self.programmed.plan({("default", name): rules}))

    async def restart(self, scheduler: str = "rr") -> None:
        self.driver = self.fresh_driver(scheduler)
        await self.driver.replace(self.programmed.everything())

    def listed(self) -> str:
        return self.world.exec(self.world.node, "ipvsadm", "-Ln")


@pytest.fixture
def kernel(world: World) -> Iterator[Kernel]:  # noqa: F811
    assert missing() == ""
    kernel = Kernel(world)
    world.ip(world.node, "route replace 10.96.0.0/13 dev lo")
    world.ip(world.node, "route replace 10.104.0.0/13 dev lo")
    asyncio.run(kernel.driver.replace([]))
    yield kernel
    asyncio.run(kernel.driver.cleanup())
    assert ":" not in kernel.listed().split("Conn\n")[-1]


def names(answers: list[str]) -> set[str]:
    return {answer.split()[0] for answer in answers}


async def test_cluster_ip_and_what_ipvsadm_shows(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({VIP: Target((A, B)), UDP_VIP: Target((A, B))})
    listed = kernel.listed()
    print(listed)
    assert re.search(r"TCP  10\.96\.0\.1:80 rr\n  -> 10\.244\.0\.2:8080 +Masq +1 .*\n  -> 10\.244\.0\.3:8080 +Masq +1", listed)
    assert "UDP  10.96.0.1:80 rr" in listed
    for ns in (world.pods["a"], world.node, world.outside):
        for protocol in ("tcp", "udp"):
            assert names(world.ask(ns, "10.96.0.1", 80, protocol, 8)) == {"a", "b"}, (ns, protocol)
    from_a = dict(answer.split() for answer in world.ask(world.pods["a"], "10.96.0.1", 80, count=8))
    assert from_a == {"b": "10.244.0.2", "a": BRIDGE}


async def test_cluster_ip_answers_ping_and_only_its_ports(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({VIP: Target((A,))})
    world.serve(world.node, "own", 9999)
    for ns in (world.pods["b"], world.node):
        assert "1 packets received" in world.exec(ns, "busybox", "ping", "-c", "1", "-W", "2", "10.96.0.1")
        assert world.ask(ns, "10.96.0.1", 9999) == ["ConnectionRefusedError"]  # the node's own servers do not answer there
        assert world.ask(ns, "10.96.99.99", 80) == ["ConnectionRefusedError"]
    await kernel.set({})
    assert "10.96.0.1" not in world.ip(world.node, "addr show kube-ipvs0")


async def test_node_port(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({NODE_PORT: Target((A, B), external=True)})
    for ns, address in ((world.outside, NODE), (world.pods["b"], BRIDGE), (world.node, NODE)):
        answers = world.ask(ns, address, 30080, count=6)
        assert names(answers) == {"a", "b"}, (ns, address)
    assert {a.split()[1] for a in world.ask(world.outside, NODE, 30080, count=4)} == {BRIDGE}
    assert f"TCP  {NODE}:30080 rr" in kernel.listed() and f"TCP  {BRIDGE}:30080 rr" in kernel.listed()


async def test_external_policy_local_keeps_the_source(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({NODE_PORT: Target((A, B), outside=(B,), external=True)})
    assert set(world.ask(world.outside, NODE, 30080, count=4)) == {f"b {OUTSIDE}"}
    await kernel.set({NODE_PORT: Target((A, B), outside=(), external=True)})
    assert world.ask(world.outside, NODE, 30080) == ["TimeoutError"]


async def test_without_endpoints_is_refused(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({VIP: Target(()), NODE_PORT: Target((), external=True)})
    for ns in (world.pods["a"], world.node, world.outside):
        assert world.ask(ns, "10.96.0.1", 80) == ["ConnectionRefusedError"]
    assert world.ask(world.outside, NODE, 30080) == ["ConnectionRefusedError"]


async def test_source_ranges(kernel: Kernel, world: World) -> None:  # noqa: F811
    yes, no = Frontend("198.51.100.7", "tcp", 80), Frontend("198.51.100.8", "tcp", 80)
    await kernel.set({yes: Target((A,), external=True, sources=("192.0.2.0/28",)), no: Target((A,), external=True, sources=("192.0.3.0/28",))})
    assert names(world.ask(world.outside, "198.51.100.7", 80)) == {"a"}
    assert world.ask(world.outside, "198.51.100.8", 80) == ["TimeoutError"]


async def test_affinity(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({VIP: Target((A, B), affinity=60)})
    assert "TCP  10.96.0.1:80 rr persistent 60" in kernel.listed()
    [backend] = names(world.ask(world.outside, "10.96.0.1", 80, count=6))
    await kernel.set({VIP: Target((B,) if backend == "a" else (A,), affinity=60)})
    assert names(world.ask(world.outside, "10.96.0.1", 80, count=3)) == {"b" if backend == "a" else "a"}
    await kernel.set({VIP: Target((A, B))})
    assert "persistent" not in kernel.listed()


async def test_a_leaving_backend_keeps_its_connections_and_gets_no_new_ones(kernel: Kernel, world: World) -> None:  # noqa: F811
    echo = (
        "import socket\ns=socket.create_server(('0.0.0.0',8081)); print('up',flush=True)\nwhile True:\n c,_=s.accept()\n while (d:=c.recv(99)): c.sendall(d)\n"
    )
    talk = (
        "import socket,sys\ns=socket.create_connection(('10.96.0.5',80),3); s.settimeout(3)\n"
        "for line in sys.stdin:\n s.sendall(line.encode()); print(s.recv(99).decode().strip(),flush=True)\n"
    )
    frontend, one, other = Frontend("10.96.0.5", "tcp", 80), Backend("10.244.0.2", 8081), B
    server = subprocess.Popen(["ip", "netns", "exec", world.pods["a"], sys.executable, "-c", echo], stdout=subprocess.PIPE, text=True)
    assert server.stdout and server.stdout.readline() == "up\n"
    await kernel.set({frontend: Target((one,))})
    client = subprocess.Popen(
        ["ip", "netns", "exec", world.outside, sys.executable, "-c", talk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert client.stdin and client.stdout
    client.stdin.write("one\n")
    assert client.stdout.readline() == "one\n"
    await kernel.set({frontend: Target((other,))})
    assert re.search(r"10\.244\.0\.2:8081 +Masq +0 +1", kernel.listed())
    assert names(world.ask(world.outside, "10.96.0.5", 80, count=4)) == {"b"}
    client.stdin.write("two\n")
    assert client.stdout.readline() == "two\n"
    await kernel.driver._in_thread(kernel.driver._drain)
    assert "10.244.0.2:8081" in kernel.listed()
    client.kill()
    server.kill()
    client.wait(), server.wait()
    kernel.driver.draining = {k: -1e9 for k in kernel.driver.draining}  # as if its time were over
    await kernel.driver._in_thread(kernel.driver._drain)
    assert "10.244.0.2:8081" not in kernel.listed()


async def test_restart_keeps_what_is_right_and_mends_the_rest(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({VIP: Target((A, B))})
    assert names(world.ask(world.outside, "10.96.0.1", 80, count=4)) == {"a", "b"}

    def connections() -> str:
        found = re.search(r"TCP  10\.96\.0\.1:80 +(\d+)", world.exec(world.node, "ipvsadm", "-Ln", "--stats"))
        return found[1] if found else ""

    for _ in range(100):  # the kernel adds them up every two seconds
        if connections() == "4":
            break
        await asyncio.sleep(0.1)
    await kernel.restart()
    assert connections() == "4"  # not made anew: the counters go on
    world.exec(world.node, "ipvsadm", "-d", "-t", "10.96.0.1:80", "-r", "10.244.0.2:8080")
    world.exec(world.node, "ipvsadm", "-A", "-t", f"{NODE}:7777", "-s", "rr")
    await kernel.restart("lc")
    listed = kernel.listed()
    assert "TCP  10.96.0.1:80 lc" in listed and "10.244.0.2:8080" in listed and "7777" not in listed


async def test_a_new_address_of_the_node_takes_node_ports(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({NODE_PORT: Target((A,), external=True)})
    world.ip(world.node, "addr add 192.0.2.77/24 dev eth0")
    await kernel.set({VIP: Target((B,))}, "other")  # any change finds it
    assert names(world.ask(world.outside, "192.0.2.77", 30080)) == {"a"}
    world.ip(world.node, "addr del 192.0.2.77/24 dev eth0")
    await kernel.set({}, "other")
    assert "192.0.2.77" not in kernel.listed()


async def test_an_address_shared_by_two_ports_stays_until_the_last_goes(kernel: Kernel, world: World) -> None:  # noqa: F811
    second = VIP._replace(port=81)
    await kernel.set({VIP: Target((A,)), second: Target((B,))})
    await kernel.set({second: Target((B,))})
    assert names(world.ask(world.outside, "10.96.0.1", 81)) == {"b"}
    assert world.ask(world.outside, "10.96.0.1", 80) == ["ConnectionRefusedError"]


async def test_what_drained_before_a_restart_is_still_removed(kernel: Kernel, world: World) -> None:  # noqa: F811
    await kernel.set({VIP: Target((A, B))})
    world.exec(world.node, "ipvsadm", "-e", "-t", "10.96.0.1:80", "-r", "10.244.0.2:8080", "-m", "-w", "0")
    kernel.programmed.plan({("default", "web"): {VIP: Target((B,))}})
    await kernel.restart()
    assert "10.244.0.2:8080" in kernel.listed()
    await kernel.driver._in_thread(kernel.driver._drain)
    assert "10.244.0.2:8080" not in kernel.listed()


async def test_ten_thousand_services(kernel: Kernel, world: World) -> None:  # noqa: F811
    """Not how fast (this machine is emulated), but that it is whole, and that one change is one."""
    count = int(os.environ.get("SERVICES", "2000"))
    rules = {Frontend(f"10.96.{100 + (i >> 8)}.{i & 255}", "tcp", 80): Target((A, B)) for i in range(count)}
    started = os.times()
    await kernel.set(rules)
    spent = os.times()
    print("CPU seconds", spent.user + spent.system - started.user - started.system)
    assert kernel.listed().count("\nTCP ") == count
    assert names(world.ask(world.outside, "10.96.100.7", 80, count=4)) == {"a", "b"}
    await kernel.restart()
    assert kernel.listed().count("\nTCP ") == count


@pytest.mark.parametrize("scheduler", ["lc", "dh", "sh", "sed", "nq", "wrr", "wlc"])
async def test_schedulers(kernel: Kernel, world: World, scheduler: str) -> None:  # noqa: F811
    await kernel.set({VIP: Target((A, B))})
    await kernel.restart(scheduler)
    assert f"TCP  10.96.0.1:80 {scheduler}" in kernel.listed()
    assert names(world.ask(world.outside, "10.96.0.1", 80, count=2)) <= {"a", "b"}
