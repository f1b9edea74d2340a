"""What a controller manager shows over HTTPS (`--secure-port`): /healthz, /livez and /readyz to anybody, /metrics to whom the API server lets read it.

Metrics have upstream's names where there is one (workqueue_*, leader_election_master_status, rest of process_*), so that dashboards read right.
"""

from __future__ import annotations

import datetime
import os
import resource
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fastkube.api.errors import ApiError
from fastkube.client.informer import Informer
from fastkube.client.rest import Client
from fastkube.controllers.runtime import Controller
from fastkube.http.message import Request, Response
from fastkube.http.server import Server
from fastkube.http.tls import server_context
from fastkube.runtime import clock

SELF_SIGNED_DAYS = 365
PLAIN = "text/plain; charset=utf-8"
ALLOWED_SECONDS = 10.0  # how long an answer about a token is believed
ALLOWED_MAX = 128


class Status:
    """What there is to show; the manager fills it in."""

    def __init__(self) -> None:
        self.controllers: list[Controller] = []
        self.informers: list[Informer] = []
        self.leading = False

    def metrics(self) -> str:
        """Prometheus text format 0.0.4."""
        lines: list[str] = []
        lines += _family("workqueue_depth", "gauge", "Current depth of workqueue", (({"name": c.name}, len(c.queue)) for c in self.controllers))
        lines += _family(
            "workqueue_adds_total", "counter", "Total number of adds handled by workqueue", (({"name": c.name}, c.queue.adds) for c in self.controllers)
        )
        lines += _family(
            "workqueue_retries_total",
            "counter",
            "Total number of retries handled by workqueue",
            (({"name": c.name}, c.queue.retries) for c in self.controllers),
        )
        lines += _family(
            "fastkube_controller_reconciles_total", "counter", "Reconciles by controller and how they ended",
            [({"name": c.name, "result": r}, n) for c in self.controllers for r, n in (("success", c.reconciled), ("error", c.failed))],
        )  # fmt: skip
        lines += _family(
            "fastkube_informer_objects", "gauge", "Objects cached", (({"resource": str(i.resource)}, len(i.store.objects)) for i in self.informers)
        )
        lines += _family("fastkube_informer_events_total", "counter", "Watch events seen", (({"resource": str(i.resource)}, i.events) for i in self.informers))
        lines += _family(
            "leader_election_master_status", "gauge", "Whether this process is the leader", [({"name": "kube-controller-manager"}, int(self.leading))]
        )
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        lines += _family("process_cpu_seconds_total", "counter", "User and system CPU time", [({}, usage.ru_utime + usage.ru_stime)])
        lines += _family("process_resident_memory_bytes", "gauge", "Resident memory", [({}, pages * os.sysconf("SC_PAGE_SIZE"))])
        return "\n".join(lines) + "\n"


def _family(name: str, type: str, help: str, samples: Iterable[tuple[dict[str, str], float]]) -> list[str]:
    lines = [f"# HELP {name} {help}", f"# TYPE {name} {type}"]
    for labels, value in samples:
        inside = ",".join(f'{k}="{v}"' for k, v in labels.items())
        lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
    return lines


class Endpoint:
    """Serves a Status. `client` asks the API server about those who want metrics (TokenReview, SubjectAccessReview)."""

    def __init__(self, status: Status, client: Client, cert: Path | None = None, key: Path | None = None) -> None:
        """Raises OSError or ssl.SSLError when the files are not a certificate and its key."""
        self._status, self._client = status, client
        self._allowed: dict[str, float] = {}  # bearer token -> until when it is known to be allowed
        self._server = Server(self._handle, server_context(cert, key) if cert and key else _self_signed())

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        return await self._server.listen(host, port)

    async def close(self) -> None:
        await self._server.close(0)

    async def _handle(self, request: Request) -> Response:
        if request.path in ("/healthz", "/livez", "/readyz"):
            return Response(200, b"ok", PLAIN)
        if request.path != "/metrics":
            return Response(404, b"404 page not found\n", PLAIN)
        if request.method != "GET":
            return Response(405, b"405 method not allowed\n", PLAIN)
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return Response(401, b"Unauthorized\n", PLAIN)
        try:
            if not await self._may_read(token):
                return Response(403, b"Forbidden\n", PLAIN)
        except ApiError:
            return Response(503, b"the API server cannot be asked\n", PLAIN)
        return Response(200, self._status.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _may_read(self, token: str) -> bool:
        now = clock.monotonic()
        if self._allowed.get(token, -1e9) > now:
            return True
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        who = (await self._client.create("authentication.k8s.io/v1/tokenreviews", review)).get("status") or {}
        if not who.get("authenticated"):
            return False
        user = who.get("user") or {}
        spec = {"user": user.get("username"), "groups": user.get("groups") or [], "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
        access = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = await self._client.create("authorization.k8s.io/v1/subjectaccessreviews", access)
        if not (answer.get("status") or {}).get("allowed"):
            return False
        if len(self._allowed) >= ALLOWED_MAX:
            self._allowed.clear()
        self._allowed[token] = now + ALLOWED_SECONDS
        return True


def _self_signed() -> ssl.SSLContext:
    """A certificate for this run, as upstream makes one when none is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-controller-manager")])
    now = datetime.datetime.fromtimestamp(clock.now(), datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    cert = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with tempfile.NamedTemporaryFile() as file:  # created 0600; ssl reads keys from files only
        file.write(cert + secret)
        file.flush()
        return server_context(file.name, file.name)
