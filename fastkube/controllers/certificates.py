"""CertificateSigningRequests: approving (kubelets' client certificates), signing (upstream's built-in signers), cleaning up.

    certificatesigningrequest-approving-controller   approves what RBAC lets the requester have (nodeclient, selfnodeclient)
    certificatesigningrequest-signing-controller     signs what is approved and keeps the signer's rules, with the cluster's CA
    certificatesigningrequest-cleaner-controller     deletes old ones

The rules of each signer are pure functions on the parsed request; the key never leaves this process.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
from collections.abc import Awaitable, Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastkube.api.errors import ApiError
from fastkube.controllers.meta import Object, condition, deleting, seconds
from fastkube.controllers.runtime import Context, Controller
from fastkube.runtime import clock, logs

REQUESTS = "certificates.k8s.io/v1/certificatesigningrequests"
KUBE_CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
LEGACY = "kubernetes.io/legacy-unknown"
SIGNERS = (KUBE_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY)
BACKDATE_SECONDS = 300.0  # certificates are valid from a little earlier, for clocks that are behind
EXPIRATION_SECONDS_MIN = 600

CLEAN_PERIOD_SECONDS = 3600.0
APPROVED_SECONDS, DENIED_SECONDS, PENDING_SECONDS = 3600.0, 3600.0, 24 * 3600.0

_CLIENT_USAGES = {"digital signature", "key encipherment", "client auth"}
_SERVING_USAGES = {"digital signature", "key encipherment", "server auth"}

_KEY_USAGES = {
    "signing": "digital_signature", "digital signature": "digital_signature", "content commitment": "content_commitment", "key encipherment": "key_encipherment",
    "key agreement": "key_agreement", "data encipherment": "data_encipherment", "cert sign": "key_cert_sign", "crl sign": "crl_sign",
    "encipher only": "encipher_only", "decipher only": "decipher_only",
}  # fmt: skip
_EXTENDED_USAGES = {
    "client auth": ExtendedKeyUsageOID.CLIENT_AUTH, "server auth": ExtendedKeyUsageOID.SERVER_AUTH, "code signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "email protection": ExtendedKeyUsageOID.EMAIL_PROTECTION, "timestamping": ExtendedKeyUsageOID.TIME_STAMPING, "ocsp signing": ExtendedKeyUsageOID.OCSP_SIGNING,
    "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}  # fmt: skip

log = logs.get("certificates")


# --- pure: what a request asks for ---


def parse(csr: Object) -> x509.CertificateSigningRequest:
    """spec.request (base64 of PEM). Raises ValueError."""
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(csr["spec"]["request"], validate=True))
    except (binascii.Error, KeyError) as e:
        raise ValueError(f"spec.request is not base64 of a PEM certificate request: {e}") from e
    if not request.is_signature_valid:
        raise ValueError("the request's signature does not fit its key")
    return request


def names(request: x509.CertificateSigningRequest) -> tuple[str, set[str], set[str]]:
    """Common name, organizations, and kinds of subject alternative names (dns, ip, email, uri)."""
    value = lambda oid: [str(a.value) for a in request.subject.get_attributes_for_oid(oid)]  # noqa: E731
    common = value(NameOID.COMMON_NAME)
    kinds = set()
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            for name in extension.value:
                kinds.add(
                    "dns"
                    if isinstance(name, x509.DNSName)
                    else "ip"
                    if isinstance(name, x509.IPAddress)
                    else "email"
                    if isinstance(name, x509.RFC822Name)
                    else "uri"
                )
    return (common[0] if common else ""), set(value(NameOID.ORGANIZATION_NAME)), kinds


def broken_rule(csr: Object, request: x509.CertificateSigningRequest) -> str | None:
    """Which rule of its signer the request breaks (k8s.io/api/certificates signer documentation); None: none."""
    signer, usages = csr["spec"]["signerName"], set(csr["spec"].get("usages") or ())
    common, organizations, kinds = names(request)
    if signer == KUBE_CLIENT:
        if "client auth" not in usages or usages - (_CLIENT_USAGES | {"signing"}):
            return "usages did not match expected: client auth, digital signature and key encipherment only"
        return "subject organization is not allowed to contain: system:masters" if "system:masters" in organizations else None
    if signer in (KUBELET_CLIENT, KUBELET_SERVING):
        if organizations != {"system:nodes"}:
            return "organization in subject is not [system:nodes]"
        if not common.startswith("system:node:"):
            return "subject common name does not begin with system:node:"
        allowed = _CLIENT_USAGES if signer == KUBELET_CLIENT else _SERVING_USAGES
        if usages not in (allowed, allowed - {"key encipherment"}):
            return f"usages did not match {sorted(allowed)}"
        if signer == KUBELET_CLIENT:
            return f"{sorted(kinds)} subjectAltNames are not allowed" if kinds else None
        if common != csr["spec"].get("username"):
            return "subject common name is not the requesting node"
        if kinds & {"email", "uri"}:
            return "email and URI subjectAltNames are not allowed"
        return None if kinds & {"dns", "ip"} else "at least one DNS or IP subjectAltName is required"
    return None


def is_approved(csr: Object) -> bool:
    return condition(csr, "Approved") is not None and condition(csr, "Denied") is None


class Signer:
    """Signs with one CA. Raises ValueError when certificate or key cannot be read."""

    def __init__(self, cert: bytes, key: bytes, lifetime_seconds: float) -> None:
        self.certificate = x509.load_pem_x509_certificate(cert)
        self._key = serialization.load_pem_private_key(key, None)
        self._lifetime_seconds = lifetime_seconds

    def sign(self, csr: Object, request: x509.CertificateSigningRequest) -> bytes:
        """The certificate, PEM: the request's subject, names and key, the usages of the spec, no CA."""
        now = clock.now()
        asked = csr["spec"].get("expirationSeconds")
        life = min(max(float(asked), EXPIRATION_SECONDS_MIN), self._lifetime_seconds) if asked else self._lifetime_seconds
        at = lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC)  # noqa: E731
        builder = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(self.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at(now - BACKDATE_SECONDS))
            .not_valid_after(min(at(now + life), self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key()), critical=False)  # type: ignore[arg-type]
        )
        builder = self._usages(builder, set(csr["spec"].get("usages") or ()))
        for extension in request.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                builder = builder.add_extension(extension.value, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]

    @staticmethod
    def _usages(builder: x509.CertificateBuilder, usages: set[str]) -> x509.CertificateBuilder:
        flags = dict.fromkeys(set(_KEY_USAGES.values()), False)
        flags |= {_KEY_USAGES[u]: True for u in usages if u in _KEY_USAGES}
        if any(flags.values()):
            flags["key_agreement"] = flags["key_agreement"] or flags["encipher_only"] or flags["decipher_only"]
            builder = builder.add_extension(x509.KeyUsage(**flags), critical=True)
        extended = [_EXTENDED_USAGES[u] for u in sorted(usages) if u in _EXTENDED_USAGES]
        return builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False) if extended else builder


# --- drivers ---


class _Requests(Controller):
    account = "certificate-controller"
    component = "certificate-controller"

    def setup(self) -> None:
        self.requests = self.informer(REQUESTS)
        self.requests.add_handler(self.enqueue, lambda old, new: self.enqueue(new))


class Approver(_Requests):
    name = "certificatesigningrequest-approving-controller"

    async def reconcile(self, key: str) -> float | None:
        csr = self.requests.by_key(key)
        if (
            csr is None
            or csr["spec"]["signerName"] != KUBELET_CLIENT
            or condition(csr, "Approved")
            or condition(csr, "Denied")
            or (csr.get("status") or {}).get("certificate")
        ):
            return None
        try:
            request = parse(csr)
        except ValueError:
            return None  # the signer says so
        if broken_rule(csr, request) is not None:
            return None
        own = names(request)[0] == csr["spec"].get("username")
        for subresource, message, applies in (
            ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.", own),
            ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.", True),
        ):
            if applies and await self._allowed(csr, subresource):
                now = clock.rfc3339()
                approved = {
                    "type": "Approved",
                    "status": "True",
                    "reason": "AutoApproved",
                    "message": message,
                    "lastUpdateTime": now,
                    "lastTransitionTime": now,
                }
                status = csr.get("status") or {}
                obj = {**csr, "status": {**status, "conditions": [*(status.get("conditions") or ()), approved]}}
                await self.client.update(REQUESTS, obj, subresource="approval")
                return None
        return None

    async def _allowed(self, csr: Object, subresource: str) -> bool:
        spec = csr["spec"]
        attributes = {"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create", "subresource": subresource, "version": "*"}
        who = {"user": spec.get("username"), "uid": spec.get("uid"), "groups": spec.get("groups"), "extra": spec.get("extra")}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {**{k: v for k, v in who.items() if v}, "resourceAttributes": attributes},
        }
        answer = await self.client.create("authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"].get("allowed"))


class SigningController(_Requests):
    name = "certificatesigningrequest-signing-controller"

    def __init__(self, context: Context) -> None:
        options = context.options
        self._signer: Signer | None = None
        if options.cluster_signing_cert and options.cluster_signing_key:
            self._signer = Signer(options.cluster_signing_cert, options.cluster_signing_key, options.cluster_signing_seconds)
        super().__init__(context)

    async def reconcile(self, key: str) -> float | None:
        csr = self.requests.by_key(key)
        if csr is None or self._signer is None or csr["spec"]["signerName"] not in SIGNERS or not is_approved(csr):
            return None
        status = csr.get("status") or {}
        if status.get("certificate") or condition(csr, "Failed"):
            return None
        try:
            request = parse(csr)
            problem = broken_rule(csr, request)
        except ValueError as e:
            problem = f"unable to parse csr {key!r}: {e}"
        if problem is not None:
            now = clock.rfc3339()
            failed = {
                "type": "Failed",
                "status": "True",
                "reason": "SignerValidationFailure",
                "message": problem,
                "lastUpdateTime": now,
                "lastTransitionTime": now,
            }
            status = {**status, "conditions": [*(status.get("conditions") or ()), failed]}
        else:
            status = {**status, "certificate": base64.b64encode(self._signer.sign(csr, request)).decode()}
            log.info("certificate signed", request=key, signer=csr["spec"]["signerName"], user=csr["spec"].get("username"))
        await self.client.update(REQUESTS, {**csr, "status": status}, subresource="status")
        return None


class Cleaner(Controller):
    name = "certificatesigningrequest-cleaner-controller"
    account = "certificate-controller"
    workers = 0

    def setup(self) -> None:
        self.requests = self.informer(REQUESTS)

    def loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {"clean": self._clean_for_ever}

    async def _clean_for_ever(self) -> None:
        while True:
            for csr in self.requests.list():
                if is_old(csr, clock.now()) and not deleting(csr):
                    try:
                        await self.client.delete(REQUESTS, csr["metadata"]["name"], uid=csr["metadata"]["uid"])
                    except ApiError as e:
                        if e.code != 404:
                            log.warning("old certificate request could not be deleted", request=csr["metadata"]["name"], error=e.message)
            await asyncio.sleep(CLEAN_PERIOD_SECONDS)


def is_old(csr: Object, now: float) -> bool:
    """Decided an hour ago, undecided for a day, or its certificate has expired. Pure."""
    for type, limit in (("Approved", APPROVED_SECONDS), ("Denied", DENIED_SECONDS), ("Failed", DENIED_SECONDS)):
        found = condition(csr, type)
        if found is not None and now - seconds(found.get("lastUpdateTime") or csr["metadata"].get("creationTimestamp")) > limit:
            return True
    status = csr.get("status") or {}
    if not status.get("conditions") and now - seconds(csr["metadata"].get("creationTimestamp")) > PENDING_SECONDS:
        return True
    if status.get("certificate"):
        try:
            certificate = x509.load_pem_x509_certificate(base64.b64decode(status["certificate"]))
        except ValueError:
            return False
        return certificate.not_valid_after_utc.timestamp() < now
    return False
