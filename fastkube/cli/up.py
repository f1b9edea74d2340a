"""`fastkube up`: a whole cluster in the foreground.

The API server and its store run here; every other part is a child process (`cli.children`) that speaks to it over HTTPS with a certificate of
its own. Nodes with containers get a containerd each, which outlives us, and so do their containers: `fastkube down` takes them away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastkube.api.errors import ApiError
from fastkube.cli import machine
from fastkube.cli.apiserver import open_server
from fastkube.cli.children import Child, Children
from fastkube.cli.etcd_face import etcd_face, tls_of, urls_of
from fastkube.cli.flags import address, serve
from fastkube.client import kubeconfig as kubeconfigs
from fastkube.controllers import manager
from fastkube.node import images
from fastkube.node.containerd import Containerd, ContainerdError, cni_bin_dir
from fastkube.runtime import clock, config, logs
from fastkube.runtime.pki import Pair, Pki
from fastkube.runtime.tasks import Supervisor
from fastkube.server.config import Config as ServerConfig
from fastkube.server.config import StartError
from fastkube.store.etcd.errors import ListenError
from fastkube.store.interface import StoreError

DNS_ADDRESS = "10.96.0.10"
DNS_PORT = 10053
KUBELET_PORT = 10250
READY_SECONDS_MAX = 120.0
CONTAINERD_CHECK_SECONDS = 2.0

log = logs.get("up")


class Runtime(StrEnum):
    containerd = "containerd"
    hollow = "hollow"


@dataclass(frozen=True, slots=True)
class Options:
    data_dir: Path
    secure_port: int
    bind_address: str
    nodes: int
    runtime: Runtime
    kubeconfig: Path
    token_auth_file: Path | None
    controllers: str
    etcd_urls: Sequence[str] = ()


class UpError(Exception):
    """The cluster cannot start; the text says why and what to do."""


def default_data_dir() -> Path:
    """/var/lib/fastkube for root, else the user's own data directory (XDG base directory specification)."""
    if os.geteuid() == 0:
        return Path("/var/lib/fastkube")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "fastkube"


def node_names(count: int, runtime: Runtime) -> list[str]:
    """One node is called as the machine is; more are numbered."""
    if runtime is Runtime.hollow:
        return [f"hollow-{i}" for i in range(count)]
    host = socket.gethostname().split(".")[0].lower()
    return [host] if count == 1 else [f"{host}-{i}" for i in range(1, count + 1)]


def check_machine(options: Options) -> None:
    """What containers need must be there before anything is started. Raises UpError."""
    if os.geteuid() != 0:
        raise UpError("--runtime containerd needs root (try --runtime hollow for simulated nodes)")
    wanted = {"containerd": "containerd", "runc": "runc", "ctr": "containerd", "nft": "nftables", "ip": "iproute2", "nsenter": "util-linux"}
    missing = [binary for binary in wanted if shutil.which(binary) is None]
    if missing:
        packages = " ".join(sorted({wanted[b] for b in missing}))
        raise UpError(f"{', '.join(missing)} not found: install what is missing (Debian: apt-get install {packages}), or use --runtime hollow")
    try:
        cni_bin_dir()
    except ContainerdError as error:
        raise UpError(str(error)) from error


class Cluster:
    """The parts of one `fastkube up`. `run` starts them in order and ends them in reverse."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.pki = Pki(options.data_dir / "pki")
        self.children = Children(os.environ.get("FASTKUBE_LOG_FORMAT", "json"))
        self.supervisor = Supervisor("up")
        self.containers = options.runtime is Runtime.containerd and options.nodes > 0
        self.local_url = f"https://{_host(options.bind_address)}:{options.secure_port}"
        self.advertise_address = machine.ADDRESS if self.containers else _routable(options.bind_address)

    async def run(self, stop: asyncio.Event) -> None:
        options = self.options
        networks = await machine.set_up_nodes(options.nodes) if self.containers else []
        server = await open_server(self._server_config())
        try:
            async with self.supervisor, contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(self.children.close)
                serving = self.pki.apiserver(self._serving_addresses())
                tls = tls_of(serving.cert, serving.key, self.pki.ca.cert)
                await stack.enter_async_context(etcd_face(server.store, options.etcd_urls, tls, options.data_dir / "store"))
                config.write_file(options.kubeconfig, self.pki.kubeconfig(self.local_url, self.pki.client("admin"), "kubernetes-admin"), 0o600)
                config.write_file(options.data_dir / "up.pid", f"{os.getpid()}\n")
                stack.callback((options.data_dir / "up.pid").unlink, missing_ok=True)
                self._start_control_plane()
                if self.containers:
                    await self._start_nodes(networks)
                    await self._ensure_storage_class()
                elif options.nodes:
                    self._start_hollow()
                ready = self.supervisor.once("announce", self._announce())
                await stop.wait()
                ready.cancel()
                log.info("stopping")
        finally:
            await server.close()

    def _server_config(self) -> ServerConfig:
        options, pki = self.options, self.pki
        addresses = [options.bind_address]
        if self.containers and options.bind_address not in ("0.0.0.0", "::", self.advertise_address):
            addresses.append(self.advertise_address)
        serving = pki.apiserver(self._serving_addresses())
        return ServerConfig(
            data_dir=options.data_dir / "store",
            bind_addresses=addresses,
            secure_port=options.secure_port,
            advertise_address=self.advertise_address,
            tls_cert_file=serving.cert,
            tls_private_key_file=serving.key,
            client_ca_file=pki.ca.cert,
            token_auth_file=options.token_auth_file,
            service_cluster_ip_range=machine.SERVICE_CIDR,
            service_account_key_files=[pki.sa_pub],
            service_account_signing_key_file=pki.sa_key,
            kubelet_client=pki.client("apiserver-kubelet-client"),
            kubelet_certificate_authority=pki.ca.cert,
            requestheader_client_ca_file=pki.front_proxy_ca.cert,
            proxy_client=pki.front_proxy_client(),
        )

    def _serving_addresses(self) -> list[str]:
        return [a for a in (self.options.bind_address, self.advertise_address) if a not in ("0.0.0.0", "::")]

    def _kubeconfig(self, name: str, pair: Pair, url: str | None = None) -> str:
        """A part's kubeconfig file -> its path."""
        path = self.options.data_dir / "kubeconfigs" / f"{name}.kubeconfig"
        config.write_file(path, self.pki.kubeconfig(url or self.local_url, pair, name), 0o600)
        return str(path)

    def _start_control_plane(self) -> None:
        pki, controllers = self.pki, self.options.controllers
        arguments = [
            "controller-manager", f"--kubeconfig={self._kubeconfig('controller-manager', pki.client('controller-manager'))}", f"--controllers={controllers}",
            "--use-service-account-credentials=true", "--allocate-node-cidrs=true", f"--cluster-cidr={machine.POD_CIDR}", f"--root-ca-file={pki.ca.cert}",
            f"--cluster-signing-cert-file={pki.ca.cert}", f"--cluster-signing-key-file={pki.ca.key}", "--leader-elect=false",
        ]  # fmt: skip
        self.children.start(Child("controller-manager", arguments))
        self.children.start(Child("scheduler", ["scheduler", f"--kubeconfig={self._kubeconfig('scheduler', pki.client('scheduler'))}", "--leader-elect=false"]))

    def _start_hollow(self) -> None:
        self.children.start(
            Child("hollow", ["hollow", f"--kubeconfig={self._kubeconfig('hollow', self.pki.client('admin'))}", f"--nodes={self.options.nodes}"])
        )

    async def _start_nodes(self, networks: Sequence[machine.NodeNetwork]) -> None:
        archives = images.build([images.PAUSE], self.options.data_dir / "images")
        names = node_names(len(networks), Runtime.containerd)
        url = f"https://{self.advertise_address}:{self.options.secure_port}"
        await asyncio.gather(*(self._start_node(name, network, url, archives) for name, network in zip(names, networks, strict=True)))
        self.children.start(
            Child(
                "dns",
                ["dns", f"--kubeconfig={self._kubeconfig('dns', self.pki.client('dns'))}", f"--listen={machine.ADDRESS}:{DNS_PORT}", "--publish=true"],
            )
        )

    async def _start_node(self, name: str, network: machine.NodeNetwork, url: str, archives: list[Path]) -> None:
        directory = self.options.data_dir / "nodes" / name
        containerd = Containerd(directory, netns=network.netns)
        await containerd.start()
        await images.import_archives(containerd.endpoint, archives)
        self.supervisor.start(f"containerd {name}", lambda: _keep(containerd))
        serving = self.pki.node_serving(name, [network.address])
        kubelet = [
            "kubelet", f"--kubeconfig={self._kubeconfig(f'kubelet-{name}', self.pki.node_client(name), url)}", f"--hostname-override={name}",
            f"--node-ip={network.address}", f"--root-dir={directory}", f"--container-runtime-endpoint={containerd.endpoint}", f"--cni-conf-dir={containerd.cni_conf_dir}",
            f"--port={KUBELET_PORT}", f"--address={network.address}", f"--tls-cert-file={serving.cert}", f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.pki.ca.cert}", f"--cluster-dns={DNS_ADDRESS}", "--cluster-domain=cluster.local",
            f"--cluster-cidr={machine.POD_CIDR}", f"--service-cluster-ip-range={machine.SERVICE_CIDR}", f"--pod-manifest-path={directory / 'manifests'}",
            f"--network-kubeconfig={self._kubeconfig('proxy', self.pki.client('proxy'), url)}",
        ]  # fmt: skip
        proxy = [
            "proxy", f"--kubeconfig={self._kubeconfig('proxy', self.pki.client('proxy'), url)}", f"--hostname-override={name}", "--proxy-mode=ipvs",
            f"--cluster-cidr={machine.POD_CIDR}",
        ]  # fmt: skip
        self.children.start(Child(f"kubelet {name}", kubelet, network.netns))
        self.children.start(Child(f"proxy {name}", proxy, network.netns))

    async def _ensure_storage_class(self) -> None:
        """The default StorageClass of nodes with disks: directories of the node, made by the built-in provisioner. A user's change of it stays."""
        wanted = {
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "fastkube.io/local-path", "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete", "metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        }  # fmt: skip
        async with kubeconfigs.load(self.options.kubeconfig) as client:
            try:
                await client.create("storage.k8s.io/v1/storageclasses", wanted)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise

    async def _announce(self) -> None:
        """Wait until the nodes are ready, then say so in one line on stdout. A node counts when its agent has renewed its lease since we started: what
        stands in its status may be from before."""
        options = self.options
        started, since = clock.monotonic(), clock.now()
        async with kubeconfigs.load(options.kubeconfig) as client:
            while True:
                ready = 0
                with contextlib.suppress(ApiError):
                    leases = (await client.list("coordination.k8s.io/v1/leases", "kube-node-lease"))["items"]
                    alive = {lease["metadata"]["name"] for lease in leases if clock.parse(lease["spec"].get("renewTime") or "1970-01-01T00:00:00Z") >= since}
                    nodes = (await client.list("v1/nodes"))["items"]
                    ready = sum(n["metadata"]["name"] in alive and _is_ready(n) for n in nodes)
                if ready >= options.nodes:
                    break
                if clock.monotonic() - started > READY_SECONDS_MAX:
                    log.warning("nodes are not ready yet", ready=ready, wanted=options.nodes)
                    started = clock.monotonic()
                await asyncio.sleep(0.2)
        nodes_text = f"{options.nodes} node{'s' * (options.nodes != 1)}"
        typer.echo(f"fastkube is ready: {self.local_url}, {nodes_text} ({options.runtime.value}); export KUBECONFIG={options.kubeconfig}")


def _is_ready(node: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions") or ())


async def _keep(containerd: Containerd) -> None:
    """Start a containerd again when it has died; containers run on meanwhile."""
    while True:
        await asyncio.sleep(CONTAINERD_CHECK_SECONDS)
        if containerd.pid() is None:
            log.warning("containerd is gone, starting it again", socket=str(containerd.socket))
            await containerd.start()


def _host(address: str) -> str:
    """How this machine reaches a server bound to `address`, as a URL's host."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"[{address}]" if ":" in address else address


def _routable(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def command(
    data_dir: Annotated[Path | None, typer.Option(help="where everything is kept [default: /var/lib/fastkube, or the user's data directory]")] = None,
    secure_port: Annotated[int, typer.Option(min=1, max=65535, help="port of the API server")] = 6443,
    bind_address: Annotated[str, typer.Option(parser=address, metavar="IP", help="address the API server listens on")] = "127.0.0.1",
    nodes: Annotated[int, typer.Option(min=0, help="how many nodes")] = 1,
    runtime: Annotated[Runtime, typer.Option(help="containerd: real containers; hollow: simulated nodes, no root needed")] = Runtime.containerd,
    kubeconfig: Annotated[Path | None, typer.Option(help="where the administrator's kubeconfig is written [default: DATA_DIR/admin.kubeconfig]")] = None,
    token_auth_file: Annotated[Path | None, typer.Option(help='CSV file of static tokens: token,user,uid,"group,..."')] = None,
    controllers: Annotated[str, typer.Option(help="controllers to run: '*' for all by default, 'name' to add, '-name' to leave out")] = "*",
    etcd_listen_client_urls: Annotated[str, typer.Option(help="serve etcd's API of the live store on these URLs, to the administrator's certificate")] = "",
) -> None:
    """Run a whole cluster in the foreground until SIGINT or SIGTERM."""
    directory = (data_dir or default_data_dir()).absolute()
    options = Options(
        directory,
        secure_port,
        bind_address,
        nodes,
        runtime,
        (kubeconfig or directory / "admin.kubeconfig").absolute(),
        token_auth_file,
        controllers,
        urls_of(etcd_listen_client_urls),
    )

    async def run(stop: asyncio.Event) -> None:
        if options.runtime is Runtime.containerd and options.nodes:
            check_machine(options)
        manager.select(options.controllers.split(","))  # a wrong name is said here, not by a child that never comes up
        options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await Cluster(options).run(stop)

    serve("up", run, (UpError, manager.ManagerError, StartError, StoreError, ListenError, ContainerdError, images.ImageError, machine.MachineError))
