"""The node kernel against a plain-Python model of upstream's NodeResources plugins."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from fastkube._ext.nodes import NodeColumns

amounts = st.integers(0, 8)


@st.composite
def clusters(draw):
    n = draw(st.integers(1, 12))
    nodes = [
        {
            "allocatable": [draw(st.integers(0, 8)) * 500, draw(st.integers(0, 8)) << 28, draw(amounts)],
            "requested": [draw(amounts) * 250, draw(amounts) << 27, draw(amounts)],
            "scoring": (draw(amounts) * 250, draw(amounts) << 27),
            "pods": draw(st.integers(0, 3)),
            "pods_max": draw(st.integers(0, 4)),
        }
        for _ in range(n)
    ]
    request = [draw(amounts) * 250, draw(amounts) << 27, draw(st.integers(0, 2))]
    mask = bytearray(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scores = draw(st.none() | st.lists(st.integers(0, 300), min_size=n, max_size=n))
    return nodes, request, mask, scores


def fits(node, request):
    room = all(not r or r <= a - u for r, a, u in zip(request, node["allocatable"], node["requested"], strict=True))
    return room and node["pods"] + 1 <= node["pods_max"]


def least(node, cpu, memory):
    parts = []
    for have, used in zip(node["allocatable"][:2], (node["scoring"][0] + cpu, node["scoring"][1] + memory), strict=True):
        if have:
            parts.append((have - used) * 100 // have if used <= have else 0)
    return sum(parts) // len(parts) if parts else 0


def balanced(node, request):
    if not node["allocatable"][0] or not node["allocatable"][1]:
        return 100
    shares = [min((u + r) / a, 1.0) for u, r, a in zip(node["requested"], request, node["allocatable"], strict=True) if a][:2]
    return int((1 - abs(shares[0] - shares[1]) / 2) * 100)


@given(clusters(), st.integers(0, 2**63), st.booleans())
def test_select_takes_one_of_the_best_that_fit(cluster, seed, balance):
    nodes, request, mask, scores = cluster
    columns = NodeColumns(capacity=1)
    columns.ensure(len(nodes), 3)
    for row, node in enumerate(nodes):
        columns.set_allocatable(row, node["allocatable"], node["pods_max"])
        columns.add(row, node["requested"], *node["scoring"], 1)
        for _ in range(node["pods"]):
            columns.add(row, [], 0, 0, 1)
        columns.add(row, [], 0, 0, -1)
    cpu, memory = request[0] or 100, request[1] or 200 << 20
    codes = bytearray(not m for m in mask)
    columns.fit(request, codes, 0, len(nodes), 5)
    feasible, first = columns.gather(codes, 0, len(nodes))
    columns.score_least(cpu, memory, 1)
    if balance:
        columns.score_balanced(request, 1)
    if scores is not None:
        columns.score_plain(array("q", scores), 1)
    row = columns.best(seed)
    fitting = [i for i, node in enumerate(nodes) if mask[i] and fits(node, request)]
    assert feasible == len(fitting)
    assert first == (fitting[0] if fitting else -1)
    if not fitting:
        assert row == -1
        return
    total = {i: least(nodes[i], cpu, memory) + (balanced(nodes[i], request) if balance else 0) + (scores[i] if scores else 0) for i in fitting}
    assert total[row] == max(total.values())


def test_ties_are_spread():
    columns = NodeColumns()
    columns.ensure(10, 3)
    for row in range(10):
        columns.set_allocatable(row, [1000, 1 << 30], 10)
    columns.gather(bytearray(10), 0, 10)
    columns.score_least(100, 0, 1)
    chosen = {columns.best(seed * 7919 + 1) for seed in range(300)}
    assert chosen == set(range(10))


def test_growing_keeps_what_is_there():
    columns = NodeColumns(capacity=2, resources=2)
    columns.ensure(2, 2)
    columns.set_allocatable(1, [5, 6], 7)
    columns.add(1, [1, 2], 3, 4, 1)
    columns.ensure(1000, 5)
    assert columns.row(1) == ([5, 6, 0, 0, 0], [1, 2, 0, 0, 0], 3, 4, 1, 7)
    columns.clear(1)
    assert columns.row(1) == ([0] * 5, [0] * 5, 0, 0, 0, 0)
