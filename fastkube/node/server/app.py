"""The node's HTTPS API: routes, and what answers them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import orjson
import prometheus_client
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fastkube.api.errors import ApiError
from fastkube.http.message import Answer, Request, Response
from fastkube.http.server import Server
from fastkube.http.tls import server_context
from fastkube.node import podspec
from fastkube.node.agent import Agent
from fastkube.node.cri import CriError
from fastkube.node.model import Container, RuntimePod
from fastkube.node.server import logs as container_logs
from fastkube.node.server import stats, streaming
from fastkube.node.server.auth import Gate
from fastkube.runtime import clock, config, logs

SELF_SIGNED_DAYS = 365
STATS_SECONDS = 1.0  # how long one look at the runtime's statistics serves

log = logs.get("node.server")

Object = dict[str, Any]
Handler = Callable[[Request, list[str]], Awaitable[Answer]]


class NodeServer:
    """Serves an agent's node."""

    def __init__(self, agent: Agent) -> None:
        config_ = agent.config
        self.agent = agent
        self.gate = Gate(agent.client, config_.name, mode=config_.authorization, anonymous=config_.anonymous, tokens=config_.webhook_authentication)
        self._routes: dict[str, tuple[int, Handler]] = {  # first part of the path -> (parts that follow, handler)
            "healthz": (-1, self._healthz),
            "pods": (0, self._pods),
            "runningpods": (0, self._running_pods),
            "configz": (0, self._configz),
            "containerLogs": (3, self._logs),
            "exec": (-1, self._exec),
            "run": (-1, self._run),
            "attach": (-1, self._attach),
            "portForward": (-1, self._port_forward),
            "stats": (-1, self._summary),
            "metrics": (-1, self._metrics),
        }
        self._rates = stats.Rates()
        self._stats: tuple[float, list[Any]] = (-1e18, [])
        self._server: Server | None = None
        self._health: Server | None = None

    async def start(self) -> tuple[str, int]:
        """Listen; the address taken. OSError, ssl.SSLError."""
        config_ = self.agent.config
        self._server = Server(self._handle, _tls(self.agent), on_error=_error)
        address = await self._server.listen(config_.address, config_.port)
        if config_.healthz_port:
            self._health = Server(lambda request: Response(200, b"ok", "text/plain; charset=utf-8"))
            await self._health.listen(config_.healthz_address, config_.healthz_port)
        log.info("serving the node's API", address=address[0], port=address[1])
        return address

    async def close(self) -> None:
        for server in (self._server, self._health):
            if server is not None:
                await server.close(0)

    async def _handle(self, request: Request) -> Answer:
        try:
            await self.gate.check(request)
            first, *rest = [p for p in request.path.split("/") if p] or [""]
            route = self._routes.get(first)
            if route is None or (route[0] >= 0 and len(rest) != route[0]):
                raise ApiError(404, "NotFound", "404 page not found")
            return await route[1](request, rest)
        except ApiError as e:
            headers = [("WWW-Authenticate", "Bearer")] if e.code == 401 else []
            return Response(e.code, e.message.encode(), "text/plain; charset=utf-8", headers)
        except CriError as e:
            code = 404 if e.gone else 500
            return Response(code, str(e).encode(), "text/plain; charset=utf-8")

    # --- finding what is asked for ---

    def _find(self, namespace: str, name: str, uid: str = "") -> tuple[Object, RuntimePod]:
        """The pod (with its current status) and its state in the runtime. ApiError 404."""
        for worker in self.agent.workers.values():
            meta = worker.pod["metadata"]
            if meta["name"] == name and meta.get("namespace", "default") == namespace and (not uid or uid == worker.uid):
                return {**worker.pod, "status": self.agent.statuses.latest.get(worker.uid, {})}, self.agent.view.get(worker.uid)
        raise ApiError(404, "NotFound", f'pod "{podspec_key(namespace, name)}" does not exist')

    def _running(self, parts: list[str]) -> tuple[Object, RuntimePod, Container]:
        """`NAMESPACE/POD[/UID]/CONTAINER` -> the container's run that is up. ApiError 404."""
        if len(parts) not in (3, 4):
            raise ApiError(404, "NotFound", "404 page not found")
        pod, runtime = self._find(parts[0], parts[1], parts[2] if len(parts) == 4 else "")
        run = runtime.latest(parts[-1])
        if run is None or not run.running:
            raise ApiError(404, "NotFound", f'container not found ("{parts[-1]}")')
        return pod, runtime, run

    # --- handlers ---

    async def _healthz(self, request: Request, parts: list[str]) -> Answer:
        problem = self.agent.view.error
        if problem and parts != ["ping"]:
            return Response(500, f"[-]ping ok\n[-]runtime failed: {problem}\n".encode(), "text/plain; charset=utf-8")
        return Response(200, b"ok", "text/plain; charset=utf-8")

    async def _pods(self, request: Request, parts: list[str]) -> Answer:
        items = [{**w.pod, "status": self.agent.statuses.latest.get(uid, w.pod.get("status") or {})} for uid, w in self.agent.workers.items() if w.present]
        return Response(200, orjson.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))

    async def _running_pods(self, request: Request, parts: list[str]) -> Answer:
        items = [
            {
                "metadata": {"name": p.name, "namespace": p.namespace, "uid": p.uid},
                "spec": {"containers": [{"name": c.name, "image": c.image} for c in p.containers if c.running]},
                "status": {},
            }
            for p in self.agent.view.pods.values()
            if p.active
        ]
        return Response(200, orjson.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))

    async def _configz(self, request: Request, parts: list[str]) -> Answer:
        config_ = self.agent.config
        out = {
            "clusterDNS": config_.cluster_dns, "clusterDomain": config_.cluster_domain, "maxPods": config_.max_pods, "podCIDR": config_.pod_cidr,
            "containerLogMaxSize": str(config_.container_log_max_bytes), "containerLogMaxFiles": config_.container_log_max_files,
            "staticPodPath": str(config_.static_pod_path or ""), "evictionHard": config_.eviction_hard, "cgroupRoot": config_.cgroup_root,
            "port": config_.port, "address": config_.address, "resolvConf": config_.resolv_conf,
        }  # fmt: skip
        return Response(200, orjson.dumps({"kubeletconfig": out}))

    async def _logs(self, request: Request, parts: list[str]) -> Answer:
        namespace, name, container = parts
        pod, runtime = self._find(namespace, name)
        if podspec.find(pod, container) is None:
            raise ApiError(404, "NotFound", f'container "{container}" not found in pod "{name}"')
        options, previous = container_logs.options_of(dict(request.query))
        run = container_logs.run_of(pod, runtime, container, previous)
        view, uid = self.agent.view, runtime.uid

        def alive() -> bool:
            return any(r.id == run.id and r.running for r in view.get(uid).containers)

        body = await container_logs.lines(run, options, alive)
        return Response(200, body, "text/plain")

    async def _exec(self, request: Request, parts: list[str]) -> Answer:
        _, _, run = self._running(parts)
        command = request.params("command")
        if not command:
            raise ApiError(400, "BadRequest", "a command is wanted")
        asked = _streams(request)
        return await streaming.serve(request, lambda: self.agent.cri.exec_url(run.id, command, **asked))

    async def _run(self, request: Request, parts: list[str]) -> Answer:
        """Run a command to its end and answer with its output (no streams)."""
        if request.method != "POST":
            raise ApiError(405, "MethodNotAllowed", "POST is wanted")
        _, _, run = self._running(parts)
        answer = await self.agent.cri.exec_sync(run.id, request.param("cmd").split(" "), 0)
        return Response(200, answer.stdout + answer.stderr, "text/plain")

    async def _attach(self, request: Request, parts: list[str]) -> Answer:
        pod, _, run = self._running(parts)
        asked = _streams(request)
        spec = podspec.find(pod, run.name) or {}
        asked["tty"] = bool(spec.get("tty"))
        return await streaming.serve(request, lambda: self.agent.cri.attach_url(run.id, **asked))

    async def _port_forward(self, request: Request, parts: list[str]) -> Answer:
        if len(parts) not in (2, 3):
            raise ApiError(404, "NotFound", "404 page not found")
        _, runtime = self._find(parts[0], parts[1], parts[2] if len(parts) == 3 else "")
        sandbox = runtime.sandbox
        if sandbox is None:
            raise ApiError(404, "NotFound", f'pod "{parts[1]}" is not running')
        texts = [p for value in [*request.params("port"), *request.params("ports")] for p in value.split(",") if p]
        if not all(p.isdecimal() and 0 < int(p) < 65536 for p in texts):
            raise ApiError(400, "BadRequest", f"invalid port in {texts}")
        return await streaming.serve(request, lambda: self.agent.cri.port_forward_url(sandbox.id, [int(p) for p in texts]), port_forward=True)

    # --- statistics ---

    async def _container_stats(self) -> list[Any]:
        at, known = self._stats
        if clock.monotonic() - at > STATS_SECONDS:
            known = await self.agent.cri.container_stats()
            self._stats = (clock.monotonic(), known)
        return known

    def _started(self) -> dict[str, float]:
        return {c.id: c.started_at for p in self.agent.view.pods.values() for c in p.containers}

    async def _summary(self, request: Request, parts: list[str]) -> Answer:
        if parts != ["summary"]:
            raise ApiError(404, "NotFound", "404 page not found")
        config_ = self.agent.config
        return Response(200, orjson.dumps(stats.summary(config_.name, config_.root_dir, await self._container_stats(), self._started(), self._rates)))

    async def _metrics(self, request: Request, parts: list[str]) -> Answer:
        if parts == ["resource"]:
            text = stats.resource_metrics(await self._container_stats(), self._started())
            return Response(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")
        if parts in ([], ["cadvisor"], ["probes"]):
            body = prometheus_client.generate_latest() + self._own_metrics().encode() if not parts else b""
            return Response(200, body, "text/plain; version=0.0.4; charset=utf-8")
        raise ApiError(404, "NotFound", "404 page not found")

    def _own_metrics(self) -> str:
        pods = self.agent.view.pods.values()
        running = sum(1 for p in pods if p.active)
        states = {state: sum(1 for p in pods for c in p.containers if c.phase == state) for state in ("created", "running", "exited", "unknown")}
        lines = ["# TYPE kubelet_running_pods gauge", f"kubelet_running_pods {running}", "# TYPE kubelet_running_containers gauge"]
        lines += [f'kubelet_running_containers{{container_state="{k}"}} {v}' for k, v in states.items()]
        lines += ["# TYPE kubelet_node_name gauge", f'kubelet_node_name{{node="{self.agent.config.name}"}} 1']
        lines += ["# TYPE kubelet_pleg_relist_total counter", f"kubelet_pleg_relist_total {self.agent.view.lists}"]
        return "\n".join(lines) + "\n"


def podspec_key(namespace: str, name: str) -> str:
    return f"{name}_{namespace}"


def _streams(request: Request) -> dict[str, bool]:
    """Which streams are asked for. ApiError 400 when none is."""
    flags = {key: request.param(name).lower() in ("1", "true") for key, name in (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))}
    if flags["tty"]:
        flags["stderr"] = False
    if not (flags["stdin"] or flags["stdout"] or flags["stderr"]):
        raise ApiError(400, "BadRequest", "you must specify at least 1 of stdin, stdout, stderr")
    return flags


def _error(request: Request | None, status: int, message: str, error: BaseException | None) -> Response:
    if error is not None and not isinstance(error, asyncio.CancelledError):
        log.error("request failed", path=request.path if request else "", exc_info=error)
    return Response(status, message.encode(), "text/plain; charset=utf-8")


def _tls(agent: Agent) -> ssl.SSLContext:
    config_ = agent.config
    cert, key = config_.tls_cert_file, config_.tls_key_file
    if cert is None or key is None:
        cert, key = self_signed((config_.cert_dir or config_.root_dir / "pki"), [config_.hostname, *config_.node_ips])
    return server_context(cert, key, config_.client_ca_file)


def self_signed(directory: Path, names: list[str]) -> tuple[Path, Path]:
    """The node's own serving certificate, made once (as the kubelet does without a certificate given)."""
    cert, key = directory / "kubelet.crt", directory / "kubelet.key"
    if cert.exists() and key.exists():
        return cert, key
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{names[0]}@{int(clock.now())}")])
    now = datetime.fromtimestamp(clock.now(), UTC)
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    config.write_file(key, pem, 0o600)
    config.write_file(cert, signed.public_bytes(serialization.Encoding.PEM))
    return cert, key
