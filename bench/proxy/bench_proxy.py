"""The service proxy with 10,000 services of three endpoints: what a start and what one change costs. Kernel ones run in a namespace of their own."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastkube.proxy.diff import Programmed
from fastkube.proxy.ipvs import steps, wanted
from fastkube.proxy.layout import Layout
from fastkube.proxy.model import Backend, Frontend, Model, Rules, Target, rules_of
from fastkube.proxy.nftables import Nft, NftablesDriver, Table
from fastkube.runtime import entropy
from tests.proxy.netns import possible, run
from tests.proxy.objects import endpoint, service, slice_

SERVICES = 10_000


def rules(i: int, backends: int = 3) -> Rules:
    addresses = (f"10.244.{n >> 8 & 255}.{n & 255}" for n in range(i * 3, i * 3 + backends))
    return {Frontend(f"10.{96 + (i >> 16)}.{i >> 8 & 255}.{i & 255}", "tcp", 80): Target(tuple(Backend(a, 8080, False) for a in addresses))}


@pytest.fixture(scope="module")
def programmed() -> Programmed:
    programmed = Programmed()
    programmed.plan({("default", f"s{i}"): rules(i) for i in range(SERVICES)})
    return programmed


def test_model_one_slice(benchmark: Any) -> None:
    """An EndpointSlice of 100 endpoints changes -> the rules of its service."""
    svc, part = service(), slice_([endpoint(f"10.244.0.{i}") for i in range(100)])
    model = Model("n1")
    model.set_service(svc)

    def change() -> None:
        model.set_slice(part)
        model.changes()

    benchmark(change)
    assert rules_of(svc, [part], "n1", "")


def test_plan_one_change_of_10000(benchmark: Any, programmed: Programmed) -> None:
    turn = itertools.cycle([rules(5, 4), rules(5)])
    benchmark(lambda: programmed.plan({("default", "s5"): next(turn)}))
    programmed.plan({("default", "s5"): rules(5)})


def test_text_of_10000(benchmark: Any, programmed: Programmed) -> None:
    everything = programmed.everything()
    benchmark.pedantic(lambda: Table(Layout("IPv4")).replace(everything, set()), rounds=3)


def test_ipvs_steps_of_10000(benchmark: Any, programmed: Programmed) -> None:
    want = wanted(programmed.live, [], "rr")
    benchmark.pedantic(lambda: list(steps({}, want)), rounds=3)


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    if not possible():
        pytest.skip("network namespaces need root and nft")
    name = f"fkx{entropy.suffix()}"
    run("ip", "netns", "add", name)
    yield name
    run("ip", "netns", "del", name)


@pytest.fixture(scope="module")
def driver(netns: str) -> NftablesDriver:
    return NftablesDriver([Layout("IPv4", ["10.244.0.0/16"], ["10.96.0.0/12"])], Nft(("ip", "netns", "exec", netns, "nft"), f"/run/netns/{netns}"))


def timed(work: Callable[[], Any]) -> Callable[[], Any]:
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(work())


def test_kernel_replace_10000(benchmark: Any, driver: NftablesDriver, programmed: Programmed) -> None:
    """A restart of the proxy: everything is put in place anew, in one transaction."""
    everything = programmed.everything()
    benchmark.pedantic(timed(lambda: driver.replace(everything)), rounds=3, warmup_rounds=1)
    cpu = os.times()
    benchmark.extra_info["children_cpu_seconds"] = cpu.children_user + cpu.children_system


def test_kernel_change_one_of_10000(benchmark: Any, driver: NftablesDriver, programmed: Programmed) -> None:
    """One endpoint of one service is replaced by another: plan and kernel update."""
    key, [(frontend, target)] = ("default", "s5"), list(rules(5).items())
    turn = itertools.cycle([target._replace(backends=(Backend("10.244.200.1", 8080, False), *target.backends[1:])), target])
    benchmark(timed(lambda: driver.change(programmed.plan({key: {frontend: next(turn)}}))))
