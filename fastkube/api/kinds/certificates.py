"""certificates.k8s.io/v1: CertificateSigningRequest. Who asks (spec.username, groups, uid, extra) is filled in by the API server."""

from __future__ import annotations

import base64
import re

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required, too_long
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.common import Errors

GROUP = "certificates.k8s.io"
USAGES = (
    "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only", "digital signature", "email protection",
    "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime",
    "server auth", "signing", "timestamping",
)  # fmt: skip
_SIGNER_BYTES_MAX = 571
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n(.*?)-----END \1-----\s*", re.S)


class CertificateSigningRequest(Kind):
    group = GROUP
    kind = "CertificateSigningRequest"
    name_rule = "path"
    has_generation = False
    field_labels = ("spec.signerName",)

    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {"request": None, "signerName": ""})

    def prepare_update(self, obj: Object, old: Object) -> None:
        obj["spec"], obj["status"] = old["spec"], old.get("status") or {}

    def prepare_status(self, obj: Object, old: Object) -> None:
        """/status sets the certificate and conditions, but not whether it is approved."""
        kept = [c for c in (old.get("status") or {}).get("conditions") or () if c.get("type") in ("Approved", "Denied")]
        mine = [c for c in (obj.get("status") or {}).get("conditions") or () if c.get("type") not in ("Approved", "Denied")]
        super().prepare_status(obj, old)
        status = obj.setdefault("status", {})
        status.pop("conditions", None)
        if kept or mine:
            status["conditions"] = kept + mine

    def prepare_approval(self, obj: Object, old: Object) -> None:
        """An update through /approval: only the status' conditions change."""
        conditions = (obj.get("status") or {}).get("conditions")
        super().prepare_status(obj, old)
        obj["status"] = {k: v for k, v in (old.get("status") or {}).items() if k != "conditions"}
        if conditions:
            obj["status"]["conditions"] = conditions

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors = _request(spec.get("request") or "", "spec.request")
        usages = spec.get("usages") or []
        if not usages:
            errors.append(required("spec.usages"))
        for i, usage in enumerate(usages):
            if usage not in USAGES:
                errors.append(not_supported(f"spec.usages[{i}]", usage, USAGES))
            if usage in usages[:i]:
                errors.append(duplicate(f"spec.usages[{i}]", usage))
        errors += _signer(spec.get("signerName") or "", "spec.signerName")
        seconds = spec.get("expirationSeconds")
        if seconds is not None and seconds < 600:
            errors.append(invalid_value("spec.expirationSeconds", seconds, "may not specify a duration less than 600 seconds (10 minutes)"))
        return errors + _conditions(obj, "status.conditions")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        errors = _conditions(obj, "status.conditions")
        new, before = (obj.get("status") or {}).get("certificate"), (old.get("status") or {}).get("certificate")
        if new and new != before:
            if before:
                errors.append(forbidden_field("status.certificate", "updates may not modify existing certificate content"))
            errors += _certificate(new, "status.certificate")
        return errors

    def validate_approval(self, obj: Object, old: Object) -> list[FieldError]:
        """Approved, Denied and Failed stay once they are there."""
        errors = _conditions(obj, "status.conditions")
        new = {c.get("type") for c in (obj.get("status") or {}).get("conditions") or ()}
        for condition in (old.get("status") or {}).get("conditions") or ():
            if condition.get("type") in ("Approved", "Denied", "Failed") and condition["type"] not in new:
                errors.append(forbidden_field("status.conditions", f'updates may not remove a condition of type "{condition["type"]}"'))
        return errors

    def fields(self, obj: Object) -> dict[str, str]:
        return {"spec.signerName": (obj.get("spec") or {}).get("signerName") or ""}


def _request(encoded: str, at: str) -> Errors:
    from cryptography import x509

    try:
        data = base64.b64decode(encoded)
        m = _PEM.search(data)
        if m is None or m[1] != b"CERTIFICATE REQUEST":
            raise ValueError("PEM block type must be CERTIFICATE REQUEST")
        csr = x509.load_pem_x509_csr(data)
        if not csr.is_signature_valid:
            raise ValueError("x509: signature check failed")
    except ValueError as e:
        return [invalid_value(at, encoded, str(e))]
    except Exception:
        return [invalid_value(at, encoded, "x509: malformed certificate request")]
    return []


def _certificate(encoded: str, at: str) -> Errors:
    from cryptography import x509

    data = base64.b64decode(encoded)
    blocks = _PEM.findall(data)
    if not blocks:
        return [invalid_value(at, "<certificate data>", "must contain at least one CERTIFICATE PEM block")]
    for kind, _ in blocks:
        if kind != b"CERTIFICATE":
            return [invalid_value(at, "<certificate data>", f'only CERTIFICATE PEM blocks are allowed, found "{kind.decode()}"')]
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError as e:
        return [invalid_value(at, "<certificate data>", str(e))]
    return []


def _signer(name: str, at: str) -> Errors:
    if not name:
        return [required(at)]
    domain, slash, path = name.partition("/")
    if not (slash and domain and path) or "/" in path:
        return [invalid_value(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")]
    errors: Errors = []
    if len(domain.encode()) > 253:
        errors.append(too_long(at, 253))
    for label in domain.split("."):
        errors += [invalid_value(at, domain, f'validating label "{label}": {m}') for m in formats.label(label)]
    if domain.count(".") < 1:
        errors.append(invalid_value(at, domain, "should be a domain with at least two segments separated by dots"))
    for label in path.split("."):
        errors += [invalid_value(at, path, f'validating label "{label}": {m}') for m in formats.label(label)]
    if len(name.encode()) > _SIGNER_BYTES_MAX:
        errors.append(too_long(at, _SIGNER_BYTES_MAX))
    return errors


def _conditions(obj: Object, at: str) -> Errors:
    errors: Errors = []
    seen: set[str] = set()
    for i, condition in enumerate((obj.get("status") or {}).get("conditions") or ()):
        kind, status = condition.get("type") or "", condition.get("status") or ""
        if not kind:
            errors.append(required(f"{at}[{i}].type"))
        allowed = ("True",) if kind in ("Approved", "Denied", "Failed") else ("False", "True", "Unknown")
        if not status:
            errors.append(required(f"{at}[{i}].status"))
        elif status not in allowed:
            errors.append(not_supported(f"{at}[{i}].status", status, allowed))
        if {"Approved", "Denied"} <= seen | {kind} and kind in ("Approved", "Denied"):
            errors.append(invalid_value(f"{at}[{i}].type", kind, "Approved and Denied conditions are mutually exclusive"))
        if kind in seen:
            errors.append(duplicate(f"{at}[{i}].type", kind))
        seen.add(kind)
    return errors


KINDS = [CertificateSigningRequest]
