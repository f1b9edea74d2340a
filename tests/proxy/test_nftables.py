"""The nftables driver on the kernel's own packets: a node, two pods and a client in network namespaces."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastkube.proxy.diff import Programmed
from fastkube.proxy.layout import TABLE, Layout
from fastkube.proxy.model import Backend, Frontend, Rules, Target
from fastkube.proxy.nftables import Nft, NftablesDriver, NftError
from fastkube.proxy.routes import halves
from tests.proxy.netns import World

A, B, C = Backend("10.244.0.2", 8080), Backend("10.244.0.3", 8080), Backend("10.244.0.4", 8080)
VIP, UDP_VIP = Frontend("10.96.0.1", "tcp", 80), Frontend("10.96.0.1", "udp", 80)
NODE, BRIDGE, OUTSIDE = "192.0.2.2", "10.244.0.1", "192.0.2.1"


class Kernel:
    """The driver in the node's namespace, and what it was told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.programmed = Programmed()
        self.driver = self.fresh_driver()

    def fresh_driver(self) -> NftablesDriver:
        return NftablesDriver(
            [Layout("IPv4", ["10.244.0.0/16"], ["10.96.0.0/12"])], Nft(("ip", "netns", "exec", self.world.node, "nft"), f"/run/netns/{self.world.node}")
        )

    async def set(self, rules: Rules, name: str = "web") -> None:
        await self.driver.change(self.programmed.plan({("default", name): rules}))

    async def restart(self) -> None:
        self.driver = self.fresh_driver()
        await self.driver.replace(self.programmed.everything())

    def listed(self) -> str:
        return self.world.exec(self.world.node, "nft", "list", "table", "ip", TABLE)


@pytest.fixture
def kernel(world: World) -> Iterator[Kernel]:
    kernel = Kernel(world)
    for half in halves("10.96.0.0/12"):
        world.ip(world.node, f"route replace {half} dev lo")
    asyncio.run(kernel.driver.replace([]))
    yield kernel
    asyncio.run(kernel.driver.cleanup())


def names(answers: list[str]) -> set[str]:
    return {answer.split()[0] for answer in answers}


def seen_as(answers: list[str]) -> set[str]:
    return {answer.split()[1] for answer in answers}


async def test_cluster_ip_from_pod_node_and_outside(kernel: Kernel, world: World) -> None:
    await kernel.set({VIP: Target((A, B)), UDP_VIP: Target((A, B))})
    for ns in (world.pods["a"], world.node, world.outside):
        for protocol in ("tcp", "udp"):
            assert names(world.ask(ns, "10.96.0.1", 80, protocol, 20)) == {"a", "b"}, (ns, protocol)
    from_a = dict(answer.split() for answer in world.ask(world.pods["a"], "10.96.0.1", 80, count=20))
    assert from_a == {"b": "10.244.0.2", "a": BRIDGE}  # its own address is kept, but to itself it comes masqueraded
    assert seen_as(world.ask(world.outside, "10.96.0.1", 80)) == {BRIDGE}


async def test_without_endpoints_is_refused_at_once(kernel: Kernel, world: World) -> None:
    await kernel.set({VIP: Target(()), UDP_VIP: Target(()), Frontend("0.0.0.0", "tcp", 30080): Target((), external=True)})
    for ns in (world.pods["a"], world.node, world.outside):
        assert world.ask(ns, "10.96.0.1", 80) == ["ConnectionRefusedError"]
    assert world.ask(world.pods["a"], "10.96.0.1", 80, "udp") == ["ConnectionRefusedError"]
    assert world.ask(world.outside, NODE, 30080) == ["ConnectionRefusedError"]
    await kernel.set({VIP: Target((A,))})
    assert names(world.ask(world.node, "10.96.0.1", 80)) == {"a"}


async def test_what_no_service_wants_is_refused_and_leaves_nowhere(kernel: Kernel, world: World) -> None:
    await kernel.set({VIP: Target((A,))})
    for ns in (world.pods["a"], world.node):
        assert world.ask(ns, "10.96.99.99", 80) == ["ConnectionRefusedError"]
        assert world.ask(ns, "10.96.0.1", 81) == ["ConnectionRefusedError"]


async def test_node_port_on_every_address(kernel: Kernel, world: World) -> None:
    await kernel.set({Frontend("0.0.0.0", "tcp", 30080): Target((A, B), external=True)})
    for ns, address in ((world.outside, NODE), (world.pods["b"], BRIDGE), (world.pods["b"], NODE), (world.node, NODE)):
        answers = world.ask(ns, address, 30080, count=16)
        assert names(answers) == {"a", "b"} and seen_as(answers) == {BRIDGE}


async def test_external_policy_local(kernel: Kernel, world: World) -> None:
    local = Frontend("0.0.0.0", "tcp", 30081)
    await kernel.set({local: Target((A, B), outside=(B,), external=True)})
    assert set(world.ask(world.outside, NODE, 30081, count=8)) == {f"b {OUTSIDE}"}
    assert names(world.ask(world.pods["a"], NODE, 30081, count=16)) == {"a", "b"}
    assert names(world.ask(world.node, NODE, 30081, count=16)) == {"a", "b"}
    await kernel.set({local: Target((A, B), outside=(), external=True)})
    assert world.ask(world.outside, NODE, 30081) == ["TimeoutError"]
    assert names(world.ask(world.pods["a"], NODE, 30081, count=16)) == {"a", "b"}


async def test_source_ranges(kernel: Kernel, world: World) -> None:
    yes, no = Frontend("198.51.100.7", "tcp", 80), Frontend("198.51.100.8", "tcp", 80)
    await kernel.set({yes: Target((A,), external=True, sources=("192.0.2.0/28",)), no: Target((A,), external=True, sources=("192.0.3.0/28", "192.0.4.1/32"))})
    assert names(world.ask(world.outside, "198.51.100.7", 80)) == {"a"}
    assert world.ask(world.outside, "198.51.100.8", 80) == ["TimeoutError"]
    await kernel.set({no: Target((A,), external=True, sources=("192.0.2.0/24",))})
    assert names(world.ask(world.outside, "198.51.100.8", 80)) == {"a"}


@pytest.mark.parametrize("frontend", [VIP, Frontend("0.0.0.0", "tcp", 30082)])
async def test_affinity(kernel: Kernel, world: World, frontend: Frontend) -> None:
    node_port = frontend.is_node_port
    address, port = (NODE, 30082) if node_port else ("10.96.0.1", 80)
    await kernel.set({frontend: Target((A, B), external=node_port, affinity=60)})
    for ns in (world.pods["a"], world.outside):
        [backend] = names(world.ask(ns, address, port, count=10))
        await kernel.restart()
        assert names(world.ask(ns, address, port, count=5)) == {backend}  # also through a restart of the proxy
        other, gone = (B, A) if backend == "a" else (A, B)
        await kernel.set({frontend: Target((other,), external=node_port, affinity=60)})
        [backend] = names(world.ask(ns, address, port, count=5))
        await kernel.set({frontend: Target((gone, other), external=node_port, affinity=60)})
        assert names(world.ask(ns, address, port, count=10)) == {backend}  # the new one is as lasting


async def test_affinity_ends(kernel: Kernel, world: World) -> None:
    await kernel.set({VIP: Target((A, B), affinity=1)})
    found = set()
    for _ in range(12):
        found |= names(world.ask(world.outside, "10.96.0.1", 80, count=2))
        if len(found) == 2:
            break
        await asyncio.sleep(1.1)
    assert found == {"a", "b"}


async def test_change_and_removal(kernel: Kernel, world: World) -> None:
    await kernel.set({VIP: Target((A,))})
    await kernel.set({VIP: Target((B,))})
    assert names(world.ask(world.node, "10.96.0.1", 80, count=5)) == {"b"}
    await kernel.set({})
    assert world.ask(world.node, "10.96.0.1", 80) == ["ConnectionRefusedError"]
    assert "10.96.0.1" not in kernel.listed()


async def test_restart_replaces_whatever_is_there(kernel: Kernel, world: World) -> None:
    """Stale elements and lanes go, what is wanted comes, also over a table of another layout."""
    await kernel.set({VIP: Target((A, B)), Frontend("10.96.0.9", "tcp", 80): Target((A, B, C))})
    kernel.programmed = Programmed()
    kernel.programmed.plan({("default", "web"): {VIP: Target((B,))}})
    await kernel.restart()
    listed = kernel.listed()
    assert "10.96.0.9" not in listed and "cluster-3" not in listed and "cluster-1" in listed
    assert names(world.ask(world.node, "10.96.0.1", 80, count=5)) == {"b"}
    world.exec(world.node, "nft", f"delete table ip {TABLE}; add table ip {TABLE}; add map ip {TABLE} services {{ type mark : verdict; }}")
    await kernel.restart()
    assert names(world.ask(world.node, "10.96.0.1", 80, count=5)) == {"b"}


async def test_no_gap_while_rules_change_and_are_replaced(kernel: Kernel, world: World) -> None:
    """A client that connects without pause sees no failure through restarts and changes of backends that stay alive."""
    await kernel.set({VIP: Target((A,))})
    script = "import socket,sys\nbad=n=0\nwhile not sys.stdin in __import__('select').select([sys.stdin],[],[],0)[0]:\n" + (
        " try:\n  s=socket.create_connection(('10.96.0.1',80),2); ok=s.recv(9); s.close()\n except OSError: ok=b''\n n+=1; bad+=not ok\nprint(n,bad)"
    )
    client = subprocess.Popen(["ip", "netns", "exec", world.outside, sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for i in range(20):
        await kernel.set({VIP: Target(((A,), (A, B), (B,))[i % 3])})
        await kernel.restart()
    out, _ = client.communicate("stop\n", timeout=20)
    count, bad = map(int, out.split())
    assert count > 20 and bad == 0


async def test_a_failed_transaction_changes_nothing(kernel: Kernel, world: World) -> None:
    await kernel.set({VIP: Target((A,))})
    world.exec(world.node, "nft", f"delete element ip {TABLE} services {{ 10.96.0.1 . tcp . 80 }}")
    with pytest.raises((NftError, OSError)):
        await kernel.set({VIP: Target(()), Frontend("10.96.0.2", "tcp", 80): Target(())})
    assert "10.96.0.2" not in kernel.listed()
    await kernel.restart()
    assert world.ask(world.node, "10.96.0.2", 80) == ["ConnectionRefusedError"]


async def test_both_ways_into_the_kernel_say_the_same(kernel: Kernel) -> None:
    """Elements changed over netlink lie there as nft itself puts them."""

    def elements() -> set[str]:
        listed = json.loads(kernel.world.exec(kernel.world.node, "nft", "-j", "list", "table", "ip", TABLE))["nftables"]
        found = [part for entry in listed for kind in ("map", "set") if (part := entry.get(kind))]
        return {f"{part['name']} {json.dumps(e)}" for part in found for e in part.get("elem", ()) if "affinity" not in part["name"]}

    frontends = [
        Frontend(ip, protocol, port) for protocol in ("tcp", "udp", "sctp") for ip, port in (("10.96.0.1", 80), ("198.51.100.7", 65535), ("0.0.0.0", 30080))
    ]
    targets = [Target((A, B), affinity=60), Target((A, C), external=True), Target((A,), outside=(B, C), external=True), Target(()), Target((), drop=True)]
    await kernel.set({f: t for f in frontends for t in targets})  # every lane is there from now on
    for i in range(len(targets) * 2):
        await kernel.set({f: targets[(i + j) % len(targets)] for j, f in enumerate(frontends) if (i + j) % 3})
    changed = elements()
    await kernel.restart()
    assert elements() == changed and len(changed) > 20


async def test_udp_flows_follow_the_endpoints(kernel: Kernel, world: World) -> None:
    """A UDP client that keeps its port goes to the backend that is there, not to the one it first met."""
    from fastkube.proxy.diff import udp_reach

    def forget(changes: list) -> None:  # type: ignore[type-arg]
        reach = {tuple(f): sorted(b) for f, b in udp_reach(changes).items()}
        code = (
            "import json,sys; from fastkube.proxy import conntrack; from fastkube.proxy.model import Frontend\n"
            "reach={Frontend(*f): frozenset(map(tuple,b)) for f,b in json.load(sys.stdin)}; print(conntrack.forget(reach))"
        )
        print(world.exec(world.node, sys.executable, "-c", code, input=json.dumps(list(reach.items()))))

    for target in (Target((A,)), Target((B,)), Target(()), Target((A,))):
        changes = kernel.programmed.plan({("default", "web"): {UDP_VIP: target}})
        await kernel.driver.change(changes)
        forget(changes)
        answers = world.ask(world.outside, "10.96.0.1", 80, "udp", source_port=40000)
        assert names(answers) == ({{A: "a", B: "b"}[target.backends[0]]} if target.backends else {"ConnectionRefusedError"})


async def test_ipv6_table_is_accepted(world: World) -> None:
    driver = NftablesDriver([Layout("IPv6", ["fd01::/64"], ["fd00::/108"])], Nft(("ip", "netns", "exec", world.node, "nft"), f"/run/netns/{world.node}"))
    programmed = Programmed()
    backends = (Backend("fd01::2", 80), Backend("fd01::3", 80))
    rules = {
        Frontend("fd00::1", "tcp", 80): Target(backends),
        Frontend("fd00::2", "udp", 80): Target(backends, affinity=60),
        Frontend("::", "tcp", 30080): Target(backends, outside=backends[:1], external=True),
        Frontend("fd00::3", "sctp", 80): Target(()),
        Frontend("2001:db8::1", "tcp", 80): Target(backends, external=True, sources=("2001:db8:1::/48",)),
    }
    try:
        programmed.plan({("default", "six"): rules})
        await driver.replace(programmed.everything())
        await driver.replace(programmed.everything())
        listed = world.exec(world.node, "nft", "list", "table", "ip6", TABLE)
        assert "fd00::2 . udp . 80 : goto cluster-2-for-60" in listed
    finally:
        await driver.cleanup()
