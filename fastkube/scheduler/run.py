"""Runs the scheduler against an API server until told to stop."""

from __future__ import annotations

import asyncio
import os
import socket

from fastkube.client import kubeconfig
from fastkube.client.leader import LeaderElector
from fastkube.runtime import entropy, logs
from fastkube.runtime.tasks import Supervisor
from fastkube.scheduler.config import Config
from fastkube.scheduler.scheduler import Scheduler

log = logs.get("scheduler")


async def run(config: Config, stop: asyncio.Event) -> None:
    """Schedule (as the leader, when there is an election) until `stop` is set. Losing the lease ends the work; it then stands for election again."""
    async with kubeconfig.load(config.kubeconfig, user_agent="kube-scheduler") as client, Supervisor("scheduler") as supervisor:

        async def work() -> None:
            log.info("scheduling", profiles=[p.scheduler_name for p in config.profiles])
            await Scheduler(client, config.profiles, config.backoff_seconds, config.backoff_seconds_max).run()

        async def elected() -> None:
            elector = LeaderElector(
                client, config.lease_name, f"{socket.gethostname()}_{os.getpid()}_{entropy.suffix()}", config.lease_namespace,
                lease_seconds=config.lease_seconds, renew_deadline_seconds=config.renew_deadline_seconds, retry_seconds=config.retry_seconds,
            )  # fmt: skip
            await elector.run(work)

        supervisor.start("main", elected if config.leader_elect else work)
        await stop.wait()
