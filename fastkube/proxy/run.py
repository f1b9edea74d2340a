"""The proxy itself: informers feed the model, changes of a few milliseconds are one kernel update.

Laws: nothing is programmed before Services and EndpointSlices are both known whole (a service without its endpoints would refuse);
an update that fails is followed by replacing everything, until that succeeds; on a stop the rules stay, as connections need them.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram

from fastkube.client import kubeconfig
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.http.server import Server
from fastkube.proxy import conntrack, health, ipvs, routes
from fastkube.proxy.config import Config, ConfigError, split_address
from fastkube.proxy.diff import Change, Programmed, Reach, udp_reach
from fastkube.proxy.layout import Layout
from fastkube.proxy.model import HEADLESS_LABEL, PROXY_NAME_LABEL, ZONE_LABEL, Model
from fastkube.proxy.nftables import NftablesDriver
from fastkube.runtime import entropy, logs
from fastkube.runtime.tasks import Supervisor

BATCH_SECONDS = 0.005  # changes that come this close together are one update
REPLACE_SECONDS = 3600.0  # everything is put in place anew this often, should somebody else have changed it
RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 30.0
SELECTOR = f"!{HEADLESS_LABEL},!{PROXY_NAME_LABEL}"

log = logs.get("proxy")

UPDATES = Counter("fastkube_proxy_updates_total", "Kernel updates, by kind and outcome", ["kind", "outcome"])
UPDATE_SECONDS = Histogram("fastkube_proxy_update_seconds", "Time of a kernel update", buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5))
FRONTENDS = Gauge("fastkube_proxy_frontends", "Addresses of services that are programmed")


class Driver(Protocol):
    """A way of programming the kernel."""

    mode: str

    async def replace(self, changes: Iterable[Change]) -> None:
        """Program exactly these (all from nothing), whatever is there, without a gap for what stays."""
        ...

    async def change(self, changes: Iterable[Change]) -> None:
        """Program these differences."""
        ...

    async def watch(self, lost: Callable[[], None]) -> None:
        """Task body: call `lost` whenever somebody else removes what we programmed, as far as the kernel tells."""
        ...

    async def cleanup(self) -> None:
        """Remove everything of ours."""
        ...


def layouts(config: Config) -> list[Layout]:
    families = ["IPv4"] + ["IPv6"] * any(":" in cidr for cidr in (*config.service_cidrs, *config.cluster_cidrs))
    return [Layout(f, config.cluster_cidrs, config.service_cidrs, config.node_port_cidrs) for f in families]


def driver_for(config: Config) -> Driver:
    """The driver of the mode asked for; ipvs (also by default) only where the kernel has it, else nftables, and the log says so. ConfigError."""
    if shutil.which("nft") is None:
        raise ConfigError("nft not found: the proxy needs it in every mode (Debian: apt-get install nftables)")
    if config.mode in ("", "ipvs"):
        missing = ipvs.missing()
        if not missing:
            return ipvs.IpvsDriver(config)
        log.warning("no IPVS here, services are programmed through nftables instead", asked_for=config.mode or "default", missing=missing)
    return NftablesDriver(layouts(config))


class Proxy:
    """Keeps the kernel true to the API objects."""

    def __init__(self, client: Client, driver: Driver, node: str, service_cidrs: list[str]) -> None:
        self.driver = driver
        self.service_cidrs = service_cidrs
        self._whole = True  # the next update replaces everything
        self.model = Model(node)
        self.programmed = Programmed()
        self.state = health.State()
        self.checks = health.HealthChecks(self.state)
        self.wake = asyncio.Event()
        self.informers = {
            "services": Informer(client, "v1/services", labels=SELECTOR, transform=slim),
            "slices": Informer(client, "discovery.k8s.io/v1/endpointslices", labels=SELECTOR, transform=slim),
            "node": Informer(client, "v1/nodes", fields=f"metadata.name={node}", transform=labels_only),
        }
        self._listen()

    def _listen(self) -> None:
        def told(setter: Any) -> Any:
            def on(*versions: Any) -> None:
                setter(versions[-1])
                self.state.changed()
                self.wake.set()

            return on

        model, informers = self.model, self.informers
        informers["services"].add_handler(told(model.set_service), told(model.set_service), told(model.delete_service))
        informers["slices"].add_handler(told(model.set_slice), told(model.set_slice), told(model.delete_slice))

        def zone(node: Any) -> None:
            model.set_zone((node["metadata"].get("labels") or {}).get(ZONE_LABEL, ""))

        informers["node"].add_handler(told(zone), told(zone))

    async def run(self) -> None:
        """Program until cancelled."""
        await asyncio.gather(*(i.synced() for i in self.informers.values()))
        backoff = RETRY_SECONDS_MIN
        while True:
            whole, self._whole = self._whole, False
            try:
                await self.sync(whole)
                backoff = RETRY_SECONDS_MIN
            except Exception as e:
                UPDATES.labels("replace" if whole else "change", "error").inc()
                log.warning("kernel update failed, everything will be programmed again", error=str(e), retry_seconds=backoff)
                self._whole = True
                await asyncio.sleep(entropy.jitter(backoff))
                backoff = min(backoff * 2, RETRY_SECONDS_MAX)
                continue
            try:
                async with asyncio.timeout(REPLACE_SECONDS):
                    await self.wake.wait()
            except TimeoutError:
                self._whole = True
            await asyncio.sleep(BATCH_SECONDS)

    async def sync(self, whole: bool) -> None:
        """Bring the kernel up to date; `whole`: whatever it holds now."""
        self.wake.clear()
        if whole:
            await asyncio.to_thread(routes.ensure, self.service_cidrs)
        changes = self.programmed.plan(self.model.changes())
        if whole:
            changes = self.programmed.everything()
        if whole or changes:
            with UPDATE_SECONDS.time():
                await (self.driver.replace(changes) if whole else self.driver.change(changes))
            UPDATES.labels("replace" if whole else "change", "ok").inc()
            FRONTENDS.set(len(self.programmed.live))
            await self._forget_flows(udp_reach(changes))
        if not self.model.dirty:
            self.state.synced()
        await self.checks.sync(self.model.health())
        if whole:
            log.info("programmed", mode=self.driver.mode, frontends=len(self.programmed.live))

    async def _forget_flows(self, reach: Reach) -> None:
        if reach:
            try:
                forgotten = await asyncio.to_thread(conntrack.forget, reach)
                if forgotten:
                    log.info("forgot stale UDP flows", flows=forgotten)
            except OSError as e:  # the rules stand; old UDP flows will time out
                log.warning("cannot look through tracked connections", error=str(e))

    def lost(self) -> None:
        """Somebody took the rules away."""
        self._whole = True
        self.wake.set()


def slim(obj: dict[str, Any]) -> dict[str, Any]:
    """An object without what the proxy never reads."""
    meta = obj["metadata"]
    kept = {k: meta[k] for k in ("name", "namespace", "labels", "resourceVersion", "uid") if k in meta}
    return {**obj, "metadata": kept}


def labels_only(node: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": slim(node)["metadata"]}


async def run(config: Config, stop: asyncio.Event) -> None:
    """Proxy until `stop` is set; the rules stay."""
    driver = await asyncio.to_thread(driver_for, config)  # pyroute2 has an event loop of its own
    log.info("starting", mode=driver.mode, node=config.node_name)
    async with kubeconfig.load(config.kubeconfig, user_agent="kube-proxy") as client, Supervisor("proxy") as supervisor:
        proxy = Proxy(client, driver, config.node_name, config.service_cidrs)
        servers = await _listen(config, proxy)
        try:
            for name, informer in proxy.informers.items():
                supervisor.start(f"informer {name}", informer.run)
            supervisor.start("sync", proxy.run)
            supervisor.start("rules watch", lambda: driver.watch(proxy.lost))
            if isinstance(driver, ipvs.IpvsDriver):
                supervisor.start("drain", driver.drain)
            await stop.wait()
        finally:
            await proxy.checks.close()
            for server in servers:
                await server.close()


async def _listen(config: Config, proxy: Proxy) -> list[Server]:
    servers = []
    for address in (config.healthz_address, config.metrics_address):
        host, port = split_address(address)
        if host:
            server = Server(health.status_handler(proxy.state, lambda: proxy.driver.mode))
            try:
                await server.listen(host, port)
            except OSError as e:
                log.warning("cannot listen, going on without", address=address, error=str(e))
                continue
            servers.append(server)
    return servers


async def cleanup(config: Config) -> None:
    """Remove every rule, virtual server, device and route of the proxy, of whichever mode."""
    await NftablesDriver([Layout("IPv4"), Layout("IPv6")]).cleanup()
    if not await asyncio.to_thread(ipvs.missing):
        await ipvs.IpvsDriver(config).cleanup()
    await asyncio.to_thread(routes.remove, config.service_cidrs)
