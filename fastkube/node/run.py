"""The node agent as a process: what `fastkube kubelet` runs."""

from __future__ import annotations

import asyncio

from fastkube.client import kubeconfig
from fastkube.node.agent import Agent
from fastkube.node.config import NodeConfig
from fastkube.node.cri import CriError
from fastkube.node.server.app import NodeServer
from fastkube.runtime import clock, logs

RUNTIME_WAIT_SECONDS_MAX = 30.0

log = logs.get("kubelet")


class StartError(Exception):
    """The agent cannot start; the text says why and what to do."""


async def run(config: NodeConfig, stop: asyncio.Event) -> None:
    """Run the agent until `stop`; containers keep running. StartError when the runtime does not answer."""
    client = kubeconfig.load(config.kubeconfig, user_agent="fastkube-kubelet") if config.kubeconfig else None
    network_client = kubeconfig.load(config.network_kubeconfig, user_agent="fastkube-node-network") if config.network_kubeconfig else None
    agent = Agent(config, client, network_client)
    server = NodeServer(agent)
    try:
        try:
            config.port = (await server.start())[1]
        except OSError as e:
            raise StartError(f"cannot serve on {config.address}:{config.port}: {e}") from None
        await _start(agent)
        log.info("node agent running", node=config.name, runtime=config.runtime_endpoint)
        await stop.wait()
    finally:
        await server.close()
        await agent.close()
        for each in (client, network_client):
            if each is not None:
                await each.close()


async def _start(agent: Agent) -> None:
    deadline = clock.monotonic() + RUNTIME_WAIT_SECONDS_MAX
    while True:
        try:
            return await agent.start()
        except CriError as e:
            if clock.monotonic() > deadline:
                raise StartError(f"the container runtime at {agent.config.runtime_endpoint} does not answer: {e}") from None
            await asyncio.sleep(0.2)
