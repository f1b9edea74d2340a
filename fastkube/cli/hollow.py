"""`fastkube hollow`: simulated nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from fastkube.cli.flags import Kubeconfig, fail, serve
from fastkube.client.kubeconfig import KubeconfigError
from fastkube.node.hollow import NODES_MAX, Config, run


def command(
    kubeconfig: Kubeconfig = "",
    nodes: Annotated[int, typer.Option(min=0, max=NODES_MAX, help="how many nodes")] = 1,
    name_prefix: Annotated[str, typer.Option(help="they are called PREFIX0, PREFIX1 ...")] = "hollow-",
    cpu: Annotated[str, typer.Option(help="CPU of each")] = "4",
    memory: Annotated[str, typer.Option(help="memory of each")] = "32Gi",
    pods: Annotated[int, typer.Option(min=1, max=250, help="pods that fit on each")] = 110,
) -> None:
    """Simulate nodes: ready, heartbeating; their pods become Running and Ready with addresses, and terminate."""
    if not kubeconfig:
        fail("--kubeconfig is needed")
    serve("hollow", lambda stop: run(Config(kubeconfig, nodes, name_prefix, cpu, memory, pods), stop), (KubeconfigError,))
