"""The node agent: brings pods from their sources, the runtime and the API together.

It holds a worker per pod (worker.py) and decides only who gets one: pods of this node from the API server's watch, static pods from files and a
URL (with a mirror pod each), and whatever the runtime still runs that has neither (those are ended once all sources have spoken).
Restarting the agent, the runtime or the API server changes nothing for running containers: all state is learnt again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from fastkube.api.errors import ApiError
from fastkube.client.events import EventRecorder
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.node import admission, model, podspec, podstatus, sources
from fastkube.node import machine as machines
from fastkube.node.cgroups import Cgroups
from fastkube.node.config import NodeConfig
from fastkube.node.cri import Cri, CriError
from fastkube.node.eviction import Eviction
from fastkube.node.housekeeping import Housekeeping
from fastkube.node.kill import Killer
from fastkube.node.model import RuntimePod, Termination
from fastkube.node.network import PodNetwork, Ranges
from fastkube.node.objects import Objects, Tokens
from fastkube.node.probes import Actions
from fastkube.node.pull import Images
from fastkube.node.registration import Registration
from fastkube.node.relist import RuntimeView
from fastkube.node.starter import Settings, Starter
from fastkube.node.statuses import Statuses
from fastkube.node.volumes.contents import VolumeError
from fastkube.node.volumes.manager import Access, Volumes
from fastkube.node.worker import Parts, Worker
from fastkube.runtime import clock, logs
from fastkube.runtime.tasks import Supervisor

RUNTIME_DOWN_SECONDS_MAX = 30.0  # without a complete list for so long, the node is not ready
NETWORK_CHECK_SECONDS = 0.2
NETWORK_SEEN_SECONDS = 10.0
MIRROR_SECONDS = 30.0
MIRROR_RETRY_SECONDS = 1.0

log = logs.get("agent")

Object = dict[str, Any]


class Agent:
    """`client` None: stand-alone, static pods only. `network_client`: who may list nodes, for the routes of the built-in pod network."""

    def __init__(self, config: NodeConfig, client: Client | None, network_client: Client | None = None) -> None:
        self.config = config
        self.client = client
        self.network_client = network_client
        self.supervisor = Supervisor("node")
        config.root_dir.mkdir(parents=True, exist_ok=True)
        self.machine = machines.look(config.root_dir)
        self.cri = Cri(config.runtime_endpoint)
        self.view = RuntimeView(self.cri, self._runtime_changed)
        self.statuses = Statuses(client, self._status_target)
        self.objects = Objects(client, self.supervisor, self._objects_changed) if client else None
        self.tokens = Tokens(client) if client else None
        self.events = EventRecorder(client, "kubelet", config.name) if client else None
        self.cgroups = Cgroups(config.cgroup_root, pids_max=config.pod_pids_limit)
        self.actions = Actions(self.cri)
        self.images = Images(self.cri, config.serialize_image_pulls)
        self.volumes = Volumes(config.root_dir, Access(self._fetch, self._token, self._claim), self.allocatable)
        self.killer = Killer(self.cri, self.actions, self.event)
        self.starter = Starter(self.cri, self.images, self.volumes, self.cgroups, self.actions, self._settings(), self._services, self.event)
        self.network = (
            PodNetwork(Ranges(config.cluster_cidr, config.service_cidr), config.cni_conf_dir, config.root_dir / "cni") if config.pod_network else None
        )
        self.tidy = Housekeeping(config, self.cri, self.view, self.images, lambda: config.root_dir)
        self.eviction = Eviction(config.eviction_hard, self.cri, config.root_dir, self._evictable, self._evict, self._free_disk, self._pressure_changed)
        self.pods: dict[str, Object] = {}  # desired pods by uid, static ones included
        self.workers: dict[str, Worker] = {}
        self._mirrors_dirty = asyncio.Event()
        self._spoken: set[str] = set()  # sources that have told all of their pods
        self._static: dict[str, dict[str, Object]] = {"file": {}, "http": {}}
        self._waiting: dict[str, Object] = {}  # pods held back until one of the same name has ended
        self._network_problem = "container runtime network not ready: NetworkReady=false"
        self.pod_informer: Informer | None = None
        self.node_informer: Informer | None = None
        self.service_informer: Informer | None = None
        self.registration: Registration | None = None
        if client is not None:
            self.pod_informer = Informer(client, "v1/pods", fields=f"spec.nodeName={config.name}")
            self.node_informer = Informer(client, "v1/nodes", fields=f"metadata.name={config.name}")
            self.service_informer = Informer(client, "v1/services")
            self.pod_informer.add_handler(self._pod_added, self._pod_updated, self._pod_deleted)
            self.registration = Registration(config, client, self.cri, self.machine, self.node_informer, self.conditions)
        self._parts = Parts(
            self.cri, self.view, self.starter, self.killer, self.volumes, self.cgroups, self.actions, self.statuses, self.supervisor, self.objects, self.tokens,
            self.event, lambda: config.node_ips, config.logs_dir, lambda: self._network_problem, self._no_room, config.restart_backoff_seconds_max,
        )  # fmt: skip

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            node_name=config.name,
            hostname=config.hostname,
            cluster_domain=config.cluster_domain,
            cluster_dns=tuple(config.cluster_dns),
            resolv_conf=config.resolv_conf,
            pod_logs=config.logs_dir,
            seccomp_default=config.seccomp_default,
            seccomp_root=str(config.root_dir / "seccomp"),
            memory_capacity=float(self.machine.memory),
        )

    # --- what parts ask for ---

    def allocatable(self) -> Mapping[str, float]:
        if self.registration is not None:
            return {k: podspec.amount(v) for k, v in self.registration.allocatable().items()}
        return {"cpu": float(self.machine.cpus), "memory": float(self.machine.memory), "ephemeral-storage": float(self.machine.storage)}

    def event(self, pod: Object, container: str, kind: str, reason: str, message: str) -> None:
        log.info("event", pod=podspec.key_of(pod), container=container, reason=reason, message=message)
        if self.events is None:
            return
        meta = pod["metadata"]
        mirror = self._status_target(pod)
        ref = {
            "apiVersion": "v1", "kind": "Pod", "namespace": meta.get("namespace", "default"), "name": meta["name"],
            "uid": (mirror or pod)["metadata"]["uid"], "resourceVersion": (mirror or pod)["metadata"].get("resourceVersion", ""),
        }  # fmt: skip
        if container:
            ref["fieldPath"] = podspec.field_path(pod, container)
        self.events.event(ref, kind, reason, message)

    def _services(self) -> list[Object]:
        return self.service_informer.list() if self.service_informer else []

    async def _fetch(self, kind: str, namespace: str, name: str) -> Object | None:
        if self.objects is None:
            raise VolumeError("this node has no API server")
        return await self.objects.fetch(kind, namespace, name)

    async def _token(self, pod: Object, audience: str, seconds: int) -> tuple[str, float]:
        if self.tokens is None:
            raise VolumeError("this node has no API server")
        return await self.tokens.get(pod, audience, seconds)

    async def _claim(self, namespace: str, name: str) -> tuple[Object, Object]:
        if self.objects is None:
            raise VolumeError("this node has no API server")
        return await self.objects.claim(namespace, name)

    # --- life ---

    async def start(self) -> None:
        """Start everything; returns when the runtime has answered once. CriError when it does not."""
        start = self.supervisor.start
        if self.network is not None:
            await self.network.guard()
        await self.cri.version()
        await self.view.refresh()
        start("runtime events", self.view.follow_events)
        start("relist", self.view.run)
        self.statuses.start(self.supervisor)
        self._start_sources()
        start("container gc", self.tidy.containers)
        start("image gc", self.tidy.collect_images)
        start("log rotation", self.tidy.rotate_logs)
        start("eviction", self.eviction.run)
        start("network", self._watch_network)
        if self.client is not None:
            self._start_api()

    def _start_sources(self) -> None:
        config, start = self.config, self.supervisor.start
        if config.static_pod_path is not None:
            directory = sources.Directory(config.static_pod_path, config.name, self._static_pods)
            directory.look()
            start("manifest directory", directory.run)
        else:
            self._spoken.add("file")
        if config.static_pod_url:
            start("manifest url", sources.Url(config.static_pod_url, config.name, self._static_pods, config.static_pod_url_headers).run)
        else:
            self._spoken.add("http")
        if self.client is None:
            self._spoken.add("api")
            self._sources_spoke()

    def _start_api(self) -> None:
        assert self.client and self.pod_informer and self.node_informer and self.service_informer and self.registration
        start, registration = self.supervisor.start, self.registration
        start("node informer", self.node_informer.run)
        start("service informer", self.service_informer.run)
        if self.events is not None:
            self.events.start(self.supervisor)
        if self.config.register_node:
            start("register", self._register)
        else:
            start("pods", self._follow_pods)
        start("mirror pods", self._keep_mirrors)
        self.node_informer.add_handler(self._node_changed, lambda _, new: self._node_changed(new), None)
        start("lease", registration.renew)

    async def _register(self) -> None:
        assert self.registration is not None
        await self.registration.register()
        self.supervisor.start("node status", self.registration.report)
        self.supervisor.start("pods", self._follow_pods)

    async def _follow_pods(self) -> None:
        """Pods are taken only when services are known (their variables) and the node is (admission)."""
        assert self.pod_informer and self.service_informer and self.node_informer
        await asyncio.gather(self.service_informer.synced(), self.node_informer.synced())
        self.supervisor.start("pod informer", self.pod_informer.run)
        await self.pod_informer.synced()
        self._spoken.add("api")
        self._sources_spoke()

    async def close(self) -> None:
        """Stop the agent; containers keep running."""
        await self.supervisor.close()
        await self.actions.close()
        await self.cri.close()

    # --- sources ---

    def _pod_added(self, pod: Object) -> None:
        if podspec.is_mirror(pod):
            self._mirror_changed(pod)
        else:
            self._desire(pod)

    def _pod_updated(self, old: Object, pod: Object) -> None:
        self._pod_added(pod)

    def _pod_deleted(self, pod: Object) -> None:
        if podspec.is_mirror(pod):
            self._mirrors_dirty.set()
            return
        self._undesire(podspec.uid_of(pod), pod)

    def _static_pods(self, source: str, pods: list[Object]) -> None:
        self._spoken.add(source)
        fresh = {podspec.uid_of(p): p for p in pods}
        before, self._static[source] = self._static[source], fresh
        for uid in before.keys() - fresh.keys():
            self._undesire(uid)
        for uid in fresh.keys() - before.keys():
            self._desire(fresh[uid])
        self._mirrors_dirty.set()
        self._sources_spoke()

    def _desire(self, pod: Object) -> None:
        uid = podspec.uid_of(pod)
        self.pods[uid] = pod
        worker = self.workers.get(uid)
        if worker is not None:
            worker.update(pod)
            return
        same_name = next((w for w in self.workers.values() if podspec.key_of(w.pod) == podspec.key_of(pod)), None)
        if same_name is not None and podspec.is_static(pod):
            self._waiting[uid] = pod
            return
        self._employ(pod)

    def _employ(self, pod: Object) -> None:
        uid = podspec.uid_of(pod)
        worker = self.workers[uid] = Worker(self._parts, pod)
        phase = (pod.get("status") or {}).get("phase")
        if phase not in podstatus.TERMINAL and not self.view.get(uid).active and not pod["metadata"].get("deletionTimestamp"):
            refused = self.eviction.refuses(pod) or admission.admit(
                pod, self._active(uid), self.node_informer.get(None, self.config.name) if self.node_informer else None, self.allocatable(), self.config.max_pods,
                self.config.allowed_unsafe_sysctls,
            )  # fmt: skip
            if refused is not None:
                worker.reject(*refused)
        self.supervisor.once(f"pod {podspec.key_of(pod)}", self._run_worker(worker))

    def _no_room(self, pod: Object) -> tuple[str, str] | None:
        """Why a resized pod does not fit: never (Infeasible) or not now (Deferred)."""
        allocatable = self.allocatable()
        for reason, others in (("Infeasible", []), ("Deferred", self._active(podspec.uid_of(pod)))):
            refused = admission.fits(pod, others, allocatable, self.config.max_pods)
            if refused is not None:
                return reason, refused[1]
        return None

    def _active(self, but: str) -> list[Object]:
        """The pods that take room on the node."""
        return [w.pod for uid, w in self.workers.items() if uid != but and w.present and not w.memory.finished and not w.memory.rejected]

    async def _run_worker(self, worker: Worker) -> None:
        try:
            await worker.run()
        finally:
            uid = worker.uid
            self.workers.pop(uid, None)
            self.statuses.forget(uid)
            for held, pod in list(self._waiting.items()):
                if podspec.key_of(pod) == podspec.key_of(worker.pod):
                    del self._waiting[held]
                    if held in self.pods:
                        self._employ(pod)

    def _undesire(self, uid: str, last: Object | None = None) -> None:
        self.pods.pop(uid, None)
        self._waiting.pop(uid, None)
        worker = self.workers.get(uid)
        if worker is not None:
            worker.gone(last)

    def _sources_spoke(self) -> None:
        """Once all sources have told their pods: what runs without one is ended, what is left on disk without one removed."""
        if self._spoken >= {"api", "file", "http"}:
            for pod in list(self.view.pods.values()):
                self._orphan(pod)
            for uid in self.volumes.known():
                if uid not in self.workers and uid not in self.pods and self.view.get(uid).empty:
                    self.supervisor.once(f"remove directory of pod {uid}", self.volumes.tear_down(uid))

    def _orphan(self, runtime: RuntimePod) -> None:
        if runtime.uid in self.workers or runtime.uid in self.pods:
            return
        log.info("a pod runs without a source, it will be ended", pod=f"{runtime.namespace}/{runtime.name}", uid=runtime.uid)
        worker = self.workers[runtime.uid] = Worker(self._parts, skeleton(runtime), known=False)
        self.supervisor.once(f"orphan {runtime.namespace}/{runtime.name}", self._run_worker(worker))

    # --- changes ---

    def _runtime_changed(self, uid: str) -> None:
        worker = self.workers.get(uid)
        if worker is not None:
            worker.poke()
        elif uid not in self.pods and uid in self.view.pods and self._spoken >= {"api", "file", "http"}:
            self._orphan(self.view.pods[uid])

    def _objects_changed(self, uids: set[str]) -> None:
        for uid in uids:
            worker = self.workers.get(uid)
            if worker is not None:
                worker.objects_changed()

    # --- mirror pods ---

    def _status_target(self, pod: Object) -> Object | None:
        """The object in the API that carries a pod's status."""
        if self.pod_informer is None:
            return None
        known = self.pod_informer.get(pod["metadata"].get("namespace", "default"), pod["metadata"]["name"])
        if podspec.is_static(pod):
            return known if known is not None and podspec.is_mirror(known) and sources.mirrors(known, pod) else None
        return known if known is not None and podspec.uid_of(known) == podspec.uid_of(pod) else None

    def _mirror_changed(self, mirror: Object) -> None:
        self._mirrors_dirty.set()
        for pod in [p for held in self._static.values() for p in held.values()]:
            if podspec.key_of(pod) == podspec.key_of(mirror):
                self.statuses.retarget(podspec.uid_of(pod))

    async def _keep_mirrors(self) -> None:
        """Task: a mirror pod for each static pod, and none without."""
        assert self.pod_informer is not None
        await self.pod_informer.synced()
        while True:
            self._mirrors_dirty.clear()
            pause = MIRROR_SECONDS
            try:
                await self._sync_mirrors()
            except ApiError as e:
                log.warning("could not keep mirror pods, trying again", error=e.message)
                pause = MIRROR_RETRY_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._mirrors_dirty.wait()
            except TimeoutError:
                pass

    async def _sync_mirrors(self) -> None:
        assert self.client and self.pod_informer and self.node_informer
        node = self.node_informer.get(None, self.config.name)
        static = {podspec.key_of(p): p for held in self._static.values() for p in held.values()}
        mirrors = {podspec.key_of(p): p for p in self.pod_informer.list() if podspec.is_mirror(p)}
        for key, mirror in mirrors.items():
            if key not in static or not sources.mirrors(mirror, static[key]) or mirror["metadata"].get("deletionTimestamp"):
                meta = mirror["metadata"]
                await self._ignoring(404, self.client.delete("v1/pods", meta["name"], meta["namespace"], grace_seconds=0, uid=meta["uid"]))
        for key, pod in static.items():
            if key not in mirrors and node is not None:
                mirror = sources.mirror_of(pod, node["metadata"]["uid"])
                await self._ignoring(409, self.client.create("v1/pods", mirror, pod["metadata"]["namespace"]))

    @staticmethod
    async def _ignoring(code: int, work: Any) -> None:
        try:
            await work
        except ApiError as e:
            if e.code != code:
                raise

    # --- the node's health and network ---

    def conditions(self) -> list[tuple[str, str, str, str]]:
        problems = []
        if clock.monotonic() - self.view.healthy_at > RUNTIME_DOWN_SECONDS_MAX or self.view.error:
            problems.append(f"container runtime is down: {self.view.error or 'no answer'}")
        if self._network_problem:
            problems.append(self._network_problem)
        ready = ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
        if problems:
            ready = ("Ready", "False", "KubeletNotReady", f"[{', '.join(problems)}]" if len(problems) > 1 else problems[0])
        return [*self.eviction.conditions(), ready]

    def _evictable(self) -> list[Object]:
        return [w.pod for w in self.workers.values() if w.present and not w.over_soon]

    def _evict(self, pod: Object, termination: Termination) -> None:
        worker = self.workers.get(podspec.uid_of(pod))
        if worker is not None and worker.memory.termination is None:
            self.event(pod, "", "Warning", "Evicted", termination.message)
            worker.terminate(termination)

    async def _free_disk(self) -> None:
        await self.tidy.remove_dead()
        await self.tidy.remove_images(1 << 62)

    def _pressure_changed(self) -> None:
        if self.registration is not None:
            self.registration.changed.set()

    def _node_changed(self, node: Object) -> None:
        self._mirrors_dirty.set()
        if self.registration is not None:
            self.registration.changed.set()
        cidr = self.config.pod_cidr or (node.get("spec") or {}).get("podCIDR")
        if self.network is not None and cidr and cidr != self.network.pod_cidr:
            self.supervisor.once("pod network", self._set_up_network(cidr))

    async def _set_up_network(self, cidr: str) -> None:
        assert self.network is not None
        await self.network.set_up(cidr)
        if self.network_client is not None:
            self.supervisor.start("peers", self._follow_peers)

    async def _watch_network(self) -> None:
        """Task: whether the runtime says that it can attach pods; asked often until it can, then now and then."""
        if self.network is not None and self.client is None and self.config.pod_cidr:
            await self._set_up_network(self.config.pod_cidr)
        while True:
            problem = await self._network_state()
            if problem != self._network_problem:
                self._network_problem = problem
                if self.registration is not None:
                    self.registration.changed.set()
                if not problem:
                    for worker in self.workers.values():
                        worker.retry()
            await asyncio.sleep(NETWORK_CHECK_SECONDS if problem else NETWORK_SEEN_SECONDS)

    async def _network_state(self) -> str:
        try:
            status = (await self.cri.status()).status
        except CriError as e:
            return f"container runtime status check may not have completed yet: {e}"
        for condition in status.conditions:
            if not condition.status:
                what = "container runtime network not ready" if condition.type == "NetworkReady" else "container runtime not ready"
                return f"{what}: {condition.type}=false reason:{condition.reason} message:{condition.message}"
        return ""

    async def _follow_peers(self) -> None:
        """Task: routes to the pods of the other nodes."""
        assert self.network_client and self.network
        informer = Informer(self.network_client, "v1/nodes")
        changed = asyncio.Event()
        informer.add_handler(lambda _: changed.set(), lambda _, __: changed.set(), lambda _: changed.set())
        task = self.supervisor.start("peer informer", informer.run)
        try:
            await informer.synced()
            while True:
                changed.clear()
                await self.network.set_peers(peer for peer in map(_peer, informer.list()) if peer[1] not in self.config.node_ips)
                await changed.wait()
        finally:
            task.cancel()


def _peer(node: Object) -> tuple[str, str]:
    """(podCIDR, InternalIP) of a node, "" for what it has not."""
    addresses = (node.get("status") or {}).get("addresses") or ()
    return (node.get("spec") or {}).get("podCIDR", ""), next((a["address"] for a in addresses if a["type"] == "InternalIP"), "")


def skeleton(runtime: RuntimePod) -> Object:
    """As much of a pod as the runtime's labels remember: enough to end it well."""
    names = list(dict.fromkeys(c.name for c in runtime.containers))
    graces = [int(c.annotations[model.ANNOTATION_GRACE]) for c in runtime.containers if c.annotations.get(model.ANNOTATION_GRACE, "").isdecimal()]
    hooks = {c.name: c.annotations[model.ANNOTATION_PRE_STOP] for c in runtime.containers if model.ANNOTATION_PRE_STOP in c.annotations}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": runtime.name, "namespace": runtime.namespace, "uid": runtime.uid},
        "spec": {
            "terminationGracePeriodSeconds": max(graces, default=podspec.GRACE_SECONDS_DEFAULT),
            "containers": [{"name": n, **({"lifecycle": {"preStop": orjson.loads(hooks[n])}} if n in hooks else {})} for n in names],
        },
    }
