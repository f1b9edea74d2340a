"""The node kernel: one decision over 5,000 nodes."""

import pytest

from fastkube._ext.nodes import NodeColumns


@pytest.mark.parametrize("nodes", [100, 5000])
def test_select(benchmark, nodes):
    columns = NodeColumns()
    columns.ensure(nodes, 3)
    for row in range(nodes):
        columns.set_allocatable(row, [4000, 32 << 30, 1 << 40], 110)
    request = [100, 500 << 20, 0]

    def decide():
        codes = bytearray(nodes)
        columns.fit(request, codes, 0, nodes, 5)
        columns.gather(codes, 0, nodes)
        columns.score_least(100, 500 << 20, 1)
        columns.score_balanced(request, 1)
        row = columns.best(12345)
        columns.add(row, request, 100, 500 << 20, 1)
        columns.add(row, request, 100, 500 << 20, -1)

    benchmark(decide)
