"""Layouts of EndpointSlices: after any history they hold exactly what they should, and small changes cost one write."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastkube.controllers.slices import Layout, Ports, Slice, canonical

HTTP: Ports = canonical([{"name": "http", "port": 80, "protocol": "TCP"}])
ALT: Ports = canonical([{"name": "http", "port": 81, "protocol": "TCP"}])


def endpoint(key: str, ready: bool = True) -> dict[str, Any]:
    return {"addresses": [key], "conditions": {"ready": ready}}


class Server:
    """Carries plans out and hands layouts back as an informer would."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.count = 0

    def carry_out(self, plan: Any) -> int:
        for one in plan.create:
            self.count += 1
            one.name = f"s{self.count}"
        for one in [*plan.create, *plan.update]:
            self.stored[one.name] = (one.group, dict(one.endpoints))
        for one in plan.delete:
            del self.stored[one.name]
        return len(plan.create) + len(plan.update) + len(plan.delete)

    def layout(self) -> Layout:
        return Layout(Slice(name, group, dict(endpoints)) for name, (group, endpoints) in self.stored.items())


wanted = st.one_of(st.none(), st.tuples(st.sampled_from([HTTP, ALT]), st.booleans()))
changes = st.dictionaries(st.tuples(st.sampled_from(["IPv4", "IPv6"]), st.sampled_from([f"p{i}" for i in range(12)])), wanted, max_size=12)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(changes, st.booleans()), max_size=12), st.integers(1, 5))
def test_what_is_stored_is_what_is_wanted(history: list[Any], size_max: int) -> None:
    server, layout, truth = Server(), Layout(), {}
    for step, restart in history:
        told = {k: (w[0], endpoint(k[1], w[1])) if w else None for k, w in step.items()}
        plan = layout.apply(told, ["IPv4", "IPv6"], size_max)
        server.carry_out(plan)
        for k, w in told.items():
            truth.pop(k, None)
            if w:
                truth[k] = w
        stored: dict[Any, Any] = {}
        for group, endpoints in server.stored.values():
            assert len(endpoints) <= size_max
            for key, value in endpoints.items():
                assert (group[0], key) not in stored
                stored[group[0], key] = (group[1], value)
        assert stored == truth
        for family in ("IPv4", "IPv6"):
            sizes = [len(e) for g, e in server.stored.values() if g[0] == family]
            assert sizes and (all(sizes) or sizes == [0])
        assert not layout.apply(told, ["IPv4", "IPv6"], size_max)  # at rest nothing is written
        if restart:
            layout = server.layout()
            assert not layout.apply({k: truth.get(k) for k in layout.keys() | set(truth)}, ["IPv4", "IPv6"], size_max)


def test_one_change_of_thousands_is_one_write() -> None:
    server, layout = Server(), Layout()
    everything = {("IPv4", f"p{i}"): (HTTP, endpoint(f"p{i}")) for i in range(5000)}
    assert server.carry_out(layout.apply(dict(everything), ["IPv4"], 100)) == 50
    assert server.carry_out(layout.apply({("IPv4", "p777"): (HTTP, endpoint("p777", False))}, ["IPv4"], 100)) == 1
    assert server.carry_out(layout.apply({("IPv4", "p778"): None}, ["IPv4"], 100)) == 1
    assert server.carry_out(layout.apply({("IPv4", "new"): (HTTP, endpoint("new"))}, ["IPv4"], 100)) == 1
    assert len(server.stored) == 50  # the gap was filled
    replaced = {("IPv4", "p1"): None, ("IPv4", "q1"): (HTTP, endpoint("q1"))}
    assert server.carry_out(layout.apply(replaced, ["IPv4"], 100)) == 1


def test_a_family_that_goes_takes_its_slices() -> None:
    server, layout = Server(), Layout()
    server.carry_out(layout.apply({("IPv4", "a"): (HTTP, endpoint("a")), ("IPv6", "a"): (HTTP, endpoint("a"))}, ["IPv4", "IPv6"], 100))
    server.carry_out(layout.apply({("IPv6", "a"): None}, ["IPv4"], 100))
    assert [g[0] for g, _ in server.stored.values()] == ["IPv4"]
