"""The controller manager: which controllers run, as whom, and as leader.

Each controller acts as its own service account in kube-system with a token from TokenRequest (upstream's
--use-service-account-credentials), so that upstream's default RBAC roles bound what each may do; informers and the lease use the manager's own
credentials. Controllers are shared-nothing but for the informers: one that fails is started again alone.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastkube.api.errors import ApiError
from fastkube.client import kubeconfig
from fastkube.client.informer import InformerFactory
from fastkube.client.leader import LeaderElector
from fastkube.client.rest import Client
from fastkube.client.transport import BearerTransport, HttpTransport
from fastkube.controllers.cache import TRANSFORMS, slim
from fastkube.controllers.runtime import Context, Controller, Options
from fastkube.controllers.serving import Endpoint, Status
from fastkube.runtime import clock, entropy, logs
from fastkube.runtime.tasks import Supervisor

TOKEN_SECONDS = 3600
TOKEN_RENEW_FRACTION = 0.8
LEASE_NAME = "kube-controller-manager"
USER_AGENT = "kube-controller-manager"

log = logs.get("controller-manager")


def _load(module: str, name: str) -> Callable[[], type[Controller]]:
    return lambda: getattr(importlib.import_module(f"fastkube.controllers.{module}"), name)


# upstream's name -> how to get the class; imported when it is started
CONTROLLERS: dict[str, Callable[[], type[Controller]]] = {
    "deployment-controller": _load("deployment", "DeploymentController"),
    "replicaset-controller": _load("replicaset", "ReplicaSetController"),
    "replicationcontroller-controller": _load("replicaset", "ReplicationControllerController"),
    "daemonset-controller": _load("daemonset", "DaemonSetController"),
    "statefulset-controller": _load("statefulset", "StatefulSetController"),
    "job-controller": _load("job", "JobController"),
    "cronjob-controller": _load("cronjob", "CronJobController"),
    "disruption-controller": _load("disruption", "DisruptionController"),
    "endpoints-controller": _load("endpoints", "EndpointsController"),
    "endpointslice-controller": _load("endpointslice", "EndpointSliceController"),
    "endpointslice-mirroring-controller": _load("endpointslicemirroring", "EndpointSliceMirroring"),
    "namespace-controller": _load("namespace", "NamespaceController"),
    "serviceaccount-controller": _load("accounts", "ServiceAccountController"),
    "root-ca-certificate-publisher-controller": _load("accounts", "RootCAPublisher"),
    "node-lifecycle-controller": _load("nodelifecycle", "NodeLifecycleController"),
    "taint-eviction-controller": _load("nodelifecycle", "TaintEvictionController"),
    "node-ipam-controller": _load("nodeipam", "NodeIpamController"),
    "pod-garbage-collector-controller": _load("housekeeping", "PodGarbageCollector"),
    "clusterrole-aggregation-controller": _load("housekeeping", "ClusterRoleAggregation"),
    "certificatesigningrequest-approving-controller": _load("certificates", "Approver"),
    "certificatesigningrequest-signing-controller": _load("certificates", "SigningController"),
    "certificatesigningrequest-cleaner-controller": _load("certificates", "Cleaner"),
    "persistentvolume-binder-controller": _load("persistentvolume", "Binder"),
    "persistentvolumeclaim-protection-controller": _load("persistentvolume", "ClaimProtection"),
    "persistentvolume-protection-controller": _load("persistentvolume", "VolumeProtection"),
    "ephemeral-volume-controller": _load("persistentvolume", "EphemeralVolumes"),
    "ttl-after-finished-controller": _load("housekeeping", "TTLAfterFinished"),
    "garbage-collector-controller": _load("garbagecollector", "GarbageCollector"),  # last: it shares the informers of those before
}
OFF_BY_DEFAULT: frozenset[str] = frozenset(("bootstrap-signer-controller", "token-cleaner-controller"))


class ManagerError(Exception):
    """The settings make no sense; the text says which."""


@dataclass(slots=True)
class Config:
    kubeconfig: str = ""
    controllers: Sequence[str] = ("*",)
    leader_elect: bool = True
    lease_name: str = LEASE_NAME
    lease_namespace: str = "kube-system"
    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0
    use_service_account_credentials: bool = True
    service_account_private_key_file: Path | None = None
    root_ca_file: Path | None = None
    cluster_signing_cert_file: Path | None = None
    cluster_signing_key_file: Path | None = None
    secure_port: int = 0
    bind_address: str = "127.0.0.1"
    tls_cert_file: Path | None = None
    tls_private_key_file: Path | None = None
    options: Options = field(default_factory=Options)


def select(wanted: Sequence[str]) -> list[str]:
    """The names that `--controllers` turns on: `*` all that are on by default, `foo` foo, `-foo` not foo. ManagerError for names unknown."""
    names = [w.removeprefix("-") for w in wanted if w != "*"]
    unknown = sorted(set(names) - set(CONTROLLERS))
    if unknown:
        raise ManagerError(f"unknown controllers: {', '.join(unknown)}; known are {', '.join(sorted(CONTROLLERS))}")
    on = [w for w in wanted if not w.startswith("-") and w != "*"]
    off = {w[1:] for w in wanted if w.startswith("-")}
    return [name for name in CONTROLLERS if name not in off and (name in on or ("*" in wanted and name not in OFF_BY_DEFAULT))]


def read_files(config: Config) -> None:
    """Fill the options with what the files hold. ManagerError names a file that cannot be read."""
    for path, attribute in (
        (config.root_ca_file, "root_ca"),
        (config.cluster_signing_cert_file, "cluster_signing_cert"),
        (config.cluster_signing_key_file, "cluster_signing_key"),
    ):
        if path is not None:
            try:
                setattr(config.options, attribute, Path(path).read_bytes())
            except OSError as e:
                raise ManagerError(f"cannot read {path}: {e.strerror}") from e


async def run(config: Config, stop: asyncio.Event) -> None:
    """Run the controllers (as the leader, when there is an election) until `stop` is set; a lost lease ends them and they stand again."""
    names = select(config.controllers)
    read_files(config)
    transport = kubeconfig.transport(config.kubeconfig, user_agent=USER_AGENT)
    async with Client(transport) as client, Supervisor("controller-manager") as supervisor:
        status = Status()
        endpoint = await _serve(config, status, client)
        accounts = ServiceAccounts(config, client)

        async def work() -> None:
            try:
                status.leading = True
                await run_controllers(names, client, accounts.client, config.options, status)
            finally:
                status.leading = False
                await accounts.close()

        async def elected() -> None:
            identity = f"{socket.gethostname()}_{os.getpid()}_{entropy.suffix()}"
            elector = LeaderElector(
                client, config.lease_name, identity, config.lease_namespace,
                lease_seconds=config.lease_seconds, renew_deadline_seconds=config.renew_deadline_seconds, retry_seconds=config.retry_seconds,
            )  # fmt: skip
            await elector.run(work)

        supervisor.start("main", elected if config.leader_elect else work)
        await stop.wait()
        if endpoint is not None:
            await endpoint.close()


async def _serve(config: Config, status: Status, client: Client) -> Endpoint | None:
    if not config.secure_port:
        return None
    try:
        endpoint = Endpoint(status, client, config.tls_cert_file, config.tls_private_key_file)
        await endpoint.listen(config.bind_address, config.secure_port)
    except (OSError, ValueError) as e:
        raise ManagerError(f"cannot serve on {config.bind_address}:{config.secure_port}: {e}") from e
    return endpoint


async def run_controllers(names: Sequence[str], client: Client, client_for: Callable[[str], Client], options: Options, status: Status | None = None) -> None:
    """Run the named controllers until cancelled. `client` feeds the informers, `client_for(account)` is who a controller writes as."""
    async with Supervisor("controllers") as supervisor:
        informers = InformerFactory(client, transforms=TRANSFORMS, default=slim)
        context = Context(informers, client_for, options, supervisor)
        controllers = [CONTROLLERS[name]()(context) for name in names]
        for controller in controllers:
            supervisor.start(controller.name, controller.run)
        informers.start(supervisor)
        if status is not None:
            status.controllers, status.informers = controllers, informers.informers
        log.info("controllers started", controllers=len(names))
        await asyncio.Event().wait()


class ServiceAccounts:
    """Clients that act as service accounts of kube-system; all share one pool of connections, which shows no client certificate."""

    def __init__(self, config: Config, client: Client) -> None:
        self._client = client
        self._config = config
        self._tokens: dict[str, _Token] = {}
        self._transport: HttpTransport | None = None

    def client(self, account: str) -> Client:
        if not self._config.use_service_account_credentials:
            return self._client
        if self._transport is None:
            self._transport = kubeconfig.transport(self._config.kubeconfig, anonymous=True, user_agent=USER_AGENT)
        token = self._tokens.setdefault(account, _Token(self._client, account))
        return Client(BearerTransport(self._transport, token.get))

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        self._tokens.clear()
        if transport is not None:
            await transport.close()


class _Token:
    """A token of one service account, made and renewed when it is asked for."""

    def __init__(self, client: Client, account: str, namespace: str = "kube-system") -> None:
        self._client, self._account, self._namespace = client, account, namespace
        self._token = ""
        self._renew_at = -1e9
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        if clock.monotonic() >= self._renew_at:
            async with self._lock:
                if clock.monotonic() >= self._renew_at:
                    await self._renew()
        return self._token

    async def _renew(self) -> None:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS}}
        ask = lambda: self._client.create("v1/serviceaccounts", request, self._namespace, name=self._account, subresource="token")  # noqa: E731
        try:
            answer = await ask()
        except ApiError as e:
            if e.code != 404:
                raise
            await self._make_account()
            answer = await ask()
        self._token = answer["status"]["token"]
        lasts = clock.parse(answer["status"]["expirationTimestamp"]) - clock.now()
        self._renew_at = clock.monotonic() + lasts * TOKEN_RENEW_FRACTION

    async def _make_account(self) -> None:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": self._account, "namespace": self._namespace}}
        try:
            await self._client.create("v1/serviceaccounts", account, self._namespace)
        except ApiError as e:
            if e.reason != "AlreadyExists":
                raise
