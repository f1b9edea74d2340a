"""The diff: fewest steps from what is programmed to what should be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastkube.proxy.diff import Change, Programmed, in_place, udp_reach
from fastkube.proxy.layout import Id, Layout
from fastkube.proxy.model import Backend, Frontend, Key, Rules, Target
from fastkube.proxy.nftables import Table
from tests.proxy.nftmodel import Ruleset

backends = st.lists(st.integers(2, 9), unique=True, max_size=5).map(lambda ns: tuple(Backend(f"10.244.0.{n}", 8080, n % 2 == 0) for n in ns))
frontends = st.builds(
    Frontend,
    st.sampled_from(["10.96.0.1", "10.96.0.2", "198.51.100.1", "0.0.0.0"]),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([80, 30080]),
)
targets = st.builds(
    Target,
    backends,
    drop=st.booleans(),
    outside=st.one_of(st.none(), backends),
    external=st.booleans(),
    affinity=st.sampled_from([0, 60]),
    sources=st.sampled_from([(), ("192.0.2.0/28", "192.0.2.64/28")]),
)
keys = st.sampled_from([("d", "a"), ("d", "b"), ("d", "c")])
histories = st.lists(st.dictionaries(keys, st.dictionaries(frontends, targets, max_size=4), max_size=3), max_size=8)


@given(backends, backends)
def test_in_place_is_a_permutation_with_fewest_moves(old: tuple[Backend, ...], new: tuple[Backend, ...]) -> None:
    placed = in_place(old, new)
    assert sorted(placed) == sorted(new)
    common = range(min(len(old), len(new)))
    gone = sum(1 for i in common if old[i] not in new)
    assert sum(1 for i in common if old[i] != placed[i]) == gone
    assert in_place(placed, new) == placed


@given(histories)
def test_applying_all_changes_gives_live(history: list[dict[Key, Rules]]) -> None:
    programmed = Programmed()
    kernel: dict[Frontend, Target] = {}
    for rules in history:
        for frontend, old, new in programmed.plan(rules):
            assert kernel.get(frontend) == old and old != new
            if new is None:
                del kernel[frontend]
            else:
                kernel[frontend] = new
        assert kernel == programmed.live
        assert programmed.plan(rules) == []
    claimed = {frontend for rules in programmed.rules.values() for frontend in rules}
    assert claimed == set(kernel)


def test_the_first_claim_holds_and_the_next_inherits() -> None:
    frontend = Frontend("198.51.100.1", "tcp", 80)
    one, two = Target((Backend("10.244.0.2", 1),), external=True), Target((Backend("10.244.0.3", 1),), external=True)
    programmed = Programmed()
    assert programmed.plan({("d", "a"): {frontend: one}}) == [Change(frontend, None, one)]
    assert programmed.plan({("d", "b"): {frontend: two}}) == []
    assert programmed.plan({("d", "a"): {}}) == [Change(frontend, one, two)]


def test_udp_flows_are_looked_at_when_backends_leave_or_come_first() -> None:
    frontend = Frontend("10.96.0.1", "udp", 53)
    none, one, two = Target(()), Target((Backend("10.244.0.2", 53),)), Target((Backend("10.244.0.2", 53), Backend("10.244.0.3", 53)))
    assert udp_reach([Change(frontend, one, two)]) == {}
    assert udp_reach([Change(frontend, two, one)]) == {frontend: frozenset({("10.244.0.2", 53)})}
    assert udp_reach([Change(frontend, none, one)]) == {frontend: frozenset({("10.244.0.2", 53)})}
    assert udp_reach([Change(frontend, one, None)]) == {frontend: frozenset()}
    assert udp_reach([Change(frontend._replace(protocol="tcp"), two, one)]) == {}


@given(histories)
def test_element_changes_add_up_to_a_replacement(history: list[dict[Key, Rules]]) -> None:
    """A table changed step by step holds the same as one filled at once; every delete and add is of something that was, or was not, there."""
    layout = Layout("IPv4", ["10.244.0.0/16"], ["10.96.0.0/12"])
    programmed, table, kernel = Programmed(), Table(layout), Ruleset()
    kernel.run(table.replace([], set()))
    for rules in history:
        kernel.run(table.change(programmed.plan(rules)).text())
        fresh = Ruleset()
        fresh.run(Table(layout).replace(programmed.everything(), set()))
        assert kernel.elements() == fresh.elements()
    table.replace(programmed.everything(), set())
    kernel.run(table.replace(programmed.everything(), kernel.parts()))
    assert kernel.elements() == fresh.elements() if history else True
    assert kernel.parts() == (fresh.parts() if history else kernel.parts())


def test_one_endpoint_replaced_is_one_element_replaced() -> None:
    frontend = Frontend("10.96.0.1", "tcp", 80)
    old = Target(tuple(Backend(f"10.244.0.{i}", 80, False) for i in range(2, 202)))
    new = old._replace(backends=(*old.backends[:100], Backend("10.244.1.1", 80, False), *old.backends[101:]))
    table = Table(Layout("IPv4"))
    table.replace([Change(frontend, None, old)], set())
    text = table.change([Change(frontend, old, new)]).text()
    assert text.splitlines() == [
        f"delete element ip fastkube-proxy endpoints {{ 10.96.0.1 . tcp . 80 . {Id(100)} }}",
        f"add element ip fastkube-proxy endpoints {{ 10.96.0.1 . tcp . 80 . {Id(100)} : 10.244.1.1 . 80 }}",
    ]


def test_one_endpoint_more_adds_its_slot_and_moves_the_service() -> None:
    frontend = Frontend("10.96.0.1", "tcp", 80)
    old = Target(tuple(Backend(f"10.244.0.{i}", 80, False) for i in range(2, 7)))
    new = old._replace(backends=(*old.backends, Backend("10.244.1.1", 80, False)))
    table = Table(Layout("IPv4"))
    table.replace([Change(frontend, None, old), Change(frontend._replace(port=81), None, new)], set())
    verbs = [line.split(" {")[0] for line in table.change([Change(frontend, old, new)]).text().splitlines()]
    assert sorted(verbs) == [
        "add element ip fastkube-proxy endpoints",
        "add element ip fastkube-proxy services",
        "delete element ip fastkube-proxy services",
    ]
