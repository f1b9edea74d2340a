"""`fastkube scheduler`, with kube-scheduler's flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastkube.cli.flags import Kubeconfig, fail, serve
from fastkube.client.kubeconfig import KubeconfigError
from fastkube.scheduler import config as configuration
from fastkube.scheduler.run import run


def command(
    kubeconfig: Kubeconfig = "",
    config: Annotated[Path | None, typer.Option(help="KubeSchedulerConfiguration file; its settings win over flags")] = None,
    leader_elect: Annotated[bool, typer.Option(help="hold a Lease, so that one of several schedulers works")] = True,
    leader_elect_resource_name: Annotated[str, typer.Option(help="name of the Lease")] = "kube-scheduler",
    leader_elect_resource_namespace: Annotated[str, typer.Option(help="namespace of the Lease")] = "kube-system",
) -> None:
    """Bind pods to nodes."""
    settings = configuration.Config(
        kubeconfig=kubeconfig, leader_elect=leader_elect, lease_name=leader_elect_resource_name, lease_namespace=leader_elect_resource_namespace
    )
    try:
        if config:
            settings = configuration.load(config, settings)
    except (configuration.ConfigError, OSError) as error:
        fail(str(error))
    if not settings.kubeconfig:
        fail("--kubeconfig is needed (or clientConnection.kubeconfig in --config)")
    serve("scheduler", lambda stop: run(settings, stop), (KubeconfigError,))
