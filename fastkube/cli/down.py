"""`fastkube down`: end the cluster of a data directory and take away what it made outside of it.

Processes, containers, network namespaces, mounts, links, rules and routes go; the data directory stays, unless it is purged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
from pathlib import Path
from typing import Annotated

import typer

from fastkube.cli import machine
from fastkube.cli.flags import fail
from fastkube.cli.up import default_data_dir
from fastkube.node import mounts
from fastkube.node.containerd import Containerd
from fastkube.node.network import PodNetwork, Ranges
from fastkube.proxy.config import Config as ProxyConfig
from fastkube.proxy.run import cleanup as remove_proxy
from fastkube.runtime import logs

STOP_SECONDS_MAX = 30.0


def _stop(pid_file: Path) -> None:
    """SIGTERM to the running `fastkube up`, SIGKILL after the grace; a stale pid file is no harm."""
    try:
        pid = int(pid_file.read_text())
        if b"fastkube" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS_MAX), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], seconds)[0]:
                return
    finally:
        os.close(handle)


async def _clean(data_dir: Path) -> None:
    await remove_proxy(ProxyConfig(service_cidrs=[machine.SERVICE_CIDR]))
    for directory in sorted((data_dir / "nodes").glob("*")):
        containerd = Containerd(directory)
        await containerd.remove_all()
        mounts.unmount_below(directory)
        network = PodNetwork(Ranges(machine.POD_CIDR, machine.SERVICE_CIDR), containerd.cni_conf_dir, directory)
        await network.remove()
    await machine.remove()


def command(
    data_dir: Annotated[Path | None, typer.Option(help="the cluster's data directory [default: as `fastkube up`]")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="remove the data directory too")] = False,
) -> None:
    """End a cluster and remove every process, container, mount, link and rule it made; its data stays without --purge."""
    directory = (data_dir or default_data_dir()).absolute()
    logs.configure(level="warning", form="text", component="down")
    if not directory.exists():
        typer.echo(f"nothing at {directory}")
        return
    _stop(directory / "up.pid")
    if (directory / "nodes").exists():
        if os.geteuid() != 0:
            fail("removing containers needs root")
        asyncio.run(_clean(directory))
    if purge:
        shutil.rmtree(directory)
    typer.echo(f"the cluster is down; {'its data is removed' if purge else f'its data stays in {directory}'}")
