"""IPVS planning, without a kernel: steps lead from what is there to what should be. The kernel's side is shown in tests/vm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastkube.proxy.ipvs import steps, wanted
from fastkube.proxy.ipvs_kernel import Server, Virtual, encode
from fastkube.proxy.ipvs_rules import IpvsLayout
from fastkube.proxy.model import Backend, Frontend, Target
from fastkube.proxy.nftables import Table
from tests.proxy.nftmodel import Ruleset
from tests.proxy.test_diff import histories

servers = st.builds(Server, st.sampled_from(["10.96.0.1", "10.96.0.2", "fd00::1"]), st.sampled_from(["tcp", "udp"]), st.just(80))
backends = st.tuples(st.sampled_from(["10.244.0.2", "10.244.0.3", "10.244.0.4"]), st.just(8080))


def virtuals(weights: st.SearchStrategy[int]) -> st.SearchStrategy[dict[Server, Virtual]]:
    one = st.builds(Virtual, st.sampled_from(["rr", "lc"]), st.sampled_from([0, 60]), st.dictionaries(backends, weights, max_size=3))
    return st.dictionaries(servers, one, max_size=4)


@given(virtuals(st.sampled_from([0, 1, 3])), virtuals(st.just(1)))
def test_steps_lead_there(have: dict[Server, Virtual], want: dict[Server, Virtual]) -> None:
    kernel = {server: virtual._replace(weights=dict(virtual.weights)) for server, virtual in have.items()}
    done = list(steps(have, want))
    for verb, server, virtual, backend, weight in done:
        if backend is None:
            assert (server in kernel) == (verb != "add")
            if verb == "del":
                del kernel[server]
            else:
                kernel[server] = virtual._replace(weights=kernel[server].weights if server in kernel else {})
        else:
            weights = kernel[server].weights
            assert (backend in weights) == (verb != "add")
            if verb == "del":
                del weights[backend]
            else:
                weights[backend] = weight
    assert kernel.keys() == want.keys()
    for server, virtual in want.items():
        assert kernel[server][:2] == virtual[:2]
        assert {b for b, weight in kernel[server].weights.items() if weight} == set(virtual.weights)
        if server.protocol == "udp":
            assert kernel[server].weights == virtual.weights
    assert all(encode(step) for step in done)
    left = list(steps(kernel, want))
    assert not left


def test_node_ports_are_on_every_address_of_their_family() -> None:
    target = Target((Backend("10.244.0.2", 8080),), external=True)
    found = wanted({Frontend("0.0.0.0", "tcp", 30080): target, Frontend("::", "tcp", 30081): target}, ["192.0.2.1", "192.0.2.2", "2001:db8::1"], "rr")
    assert {(s.ip, s.port) for s in found} == {("192.0.2.1", 30080), ("192.0.2.2", 30080), ("2001:db8::1", 30081)}


def test_policy_local_serves_local_backends_only() -> None:
    one, two = Backend("10.244.0.2", 8080), Backend("10.244.1.2", 8080, False)
    [virtual] = wanted({Frontend("198.51.100.1", "tcp", 80): Target((one, two), outside=(one,), external=True)}, [], "rr").values()
    assert list(virtual.weights) == [("10.244.0.2", 8080)]


@given(histories)
def test_the_table_beside_adds_up_too(history: list) -> None:  # type: ignore[type-arg]
    from fastkube.proxy.diff import Programmed

    layout = IpvsLayout("IPv4", ["10.244.0.0/16"], ["10.96.0.0/12"])
    programmed, table, kernel, fresh = Programmed(), Table(layout), Ruleset(), Ruleset()
    kernel.run(table.replace([], set()))
    for rules in history:
        kernel.run(table.change(programmed.plan(rules)).text())
    fresh.run(Table(layout).replace(programmed.everything(), set()))
    assert kernel.elements() == fresh.elements()
