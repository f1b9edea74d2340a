"""The node kernel: one decision over 5,000 nodes."""

import pytest

from fastkube._ext.nodes import NodeColumns


@pytest.mark.parametrize("nodes", [100, 5000])
def test_select(benchmark, nodes):
    columns = NodeColumns()
    columns.ensure(nodes, 3)
    for row in range(nodes):
        columns.set_allocatable(row, [4000, 32 << 30, 1 << 40], 110)
    mask = bytearray(b"\1" * nodes)
    request = [100, 500 << 20, 0]

    def decide():
        row, _ = columns.select(request, 100, 500 << 20, mask, None, True, 12345)
        columns.add(row, request, 100, 500 << 20, 1)
        columns.add(row, request, 100, 500 << 20, -1)

    benchmark(decide)
