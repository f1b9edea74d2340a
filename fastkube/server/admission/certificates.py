"""Who may approve, sign and ask for which certificates (CertificateSigningRequests, by signer name)."""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.x509.oid import NameOID

from fastkube.api import resources
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin, forbidden
from fastkube.server.authz import MASTERS, Authorizer
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes, RequestInfo

GROUP = "certificates.k8s.io"
REQUESTS = resources.parse(f"{GROUP}/v1/certificatesigningrequests")
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"


def _may(authorizer: Authorizer, a: AdmissionAttributes, verb: str, signer: str) -> bool:
    """Allowed on the signer itself, or on all of its domain (`example.com/*`)."""
    names = (signer, signer.partition("/")[0] + "/*")
    return any(authorizer.authorize(a.user, RequestInfo(verb, "", True, GROUP, "*", "signers", "", "", name)).allowed for name in names)


class CertificateApproval(Plugin):
    name = "CertificateApproval"

    def __init__(self, reader: Reader, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == UPDATE and resource is REQUESTS and subresource == "approval"

    def validate(self, attributes: AdmissionAttributes) -> None:
        signer = (attributes.old or {}).get("spec", {}).get("signerName", "")
        if not _may(self._authorizer, attributes, "approve", signer):
            raise forbidden(attributes, f'user not permitted to approve requests with signerName "{signer}"')


class CertificateSigning(Plugin):
    name = "CertificateSigning"

    def __init__(self, reader: Reader, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == UPDATE and resource is REQUESTS and subresource == "status"

    def validate(self, attributes: AdmissionAttributes) -> None:
        new, old = (attributes.obj or {}).get("status") or {}, (attributes.old or {}).get("status") or {}
        if new.get("certificate") == old.get("certificate") and new.get("conditions") == old.get("conditions"):
            return
        signer = (attributes.old or {}).get("spec", {}).get("signerName", "")
        if not _may(self._authorizer, attributes, "sign", signer):
            raise forbidden(attributes, f'user not permitted to sign requests with signerName "{signer}"')


class CertificateSubjectRestriction(Plugin):
    """No client certificate with system:masters is to be had by asking."""

    name = "CertificateSubjectRestriction"

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        return operation == CREATE and resource is REQUESTS and not subresource

    def validate(self, attributes: AdmissionAttributes) -> None:
        spec = (attributes.obj or {}).get("spec") or {}
        if spec.get("signerName") == CLIENT_SIGNER and MASTERS in organizations(spec):
            raise forbidden(attributes, f"use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")


def organizations(spec: Object) -> list[str]:
    """The subject's O of a CertificateSigningRequest's spec; empty when the request cannot be read (validation says so)."""
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(spec.get("request") or ""))
        return [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    except ValueError:
        return []
