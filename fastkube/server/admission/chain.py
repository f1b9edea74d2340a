"""The plugins in upstream's order, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastkube.api import resources
from fastkube.api.resources import Resource
from fastkube.runtime.tasks import Supervisor
from fastkube.server import audit
from fastkube.server.admission import nodes, pods, security, storage, webhooks
from fastkube.server.admission.certificates import CertificateApproval, CertificateSigning, CertificateSubjectRestriction
from fastkube.server.admission.limits import LimitRanger
from fastkube.server.admission.namespaces import NamespaceLifecycle
from fastkube.server.admission.plugin import Plugin, Step
from fastkube.server.admission.policies import ValidatingAdmissionPolicy
from fastkube.server.admission.quota import ResourceQuota
from fastkube.server.admission.rbac import RbacEscalation
from fastkube.server.admission.serviceaccounts import ServiceAccount
from fastkube.server.authz import Authorizer
from fastkube.server.reader import Reader
from fastkube.server.request import AdmissionAttributes
from fastkube.server.writer import Writer

ByKind = Callable[[str, str, str], Resource | None]
PLANS_MAX = 4096  # combinations of operation, resource and subresource whose plugins are remembered


@dataclass(slots=True)
class Config:
    enable: Sequence[str] = ()  # --enable-admission-plugins, beyond the default ones
    disable: Sequence[str] = ()  # --disable-admission-plugins


class Chain:
    def __init__(self, plugins: Sequence[Plugin], caller: webhooks.Caller | None = None) -> None:
        self.plugins = tuple(plugins)
        self._caller = caller
        self._plans: dict[tuple[str, Resource, str], tuple[tuple[Step, ...], tuple[Step, ...]]] = {}

    async def admit(self, attributes: AdmissionAttributes) -> None:
        """The mutating phase. ApiError."""
        for step in self._plan(attributes)[0]:
            answer = step(attributes)
            if answer is not None:
                await answer
        if attributes.annotations:
            audit.annotate(attributes.annotations)

    async def validate(self, attributes: AdmissionAttributes) -> None:
        """The validating phase. ApiError."""
        for step in self._plan(attributes)[1]:
            answer = step(attributes)
            if answer is not None:
                await answer
        if attributes.annotations:
            audit.annotate(attributes.annotations)

    def start(self, supervisor: Supervisor) -> None:
        """Start the tasks that plugins need (what they tell of later: a quota's status)."""
        for plugin in self.plugins:
            if plugin.run is not None:
                supervisor.start(plugin.name, plugin.run)

    async def close(self) -> None:
        """Let go of the connections to webhooks."""
        if self._caller is not None:
            await self._caller.close()

    def _plan(self, attributes: AdmissionAttributes) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        key = (attributes.operation, attributes.resource, attributes.subresource)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            having = [p for p in self.plugins if p.handles(*key)]
            plan = self._plans[key] = (tuple(p.admit for p in having if p.admit), tuple(p.validate for p in having if p.validate))
        return plan


def build(config: Config, reader: Reader, writer: Writer, authorizer: Authorizer, extra: Sequence[Plugin] = (), by_kind: ByKind | None = None) -> Chain:
    """The default plugins and `extra` ones (of entry points), the latter before quota. Raises ValueError when a name is unknown.

    `by_kind(group, version, kind)` names the served resource, custom ones included (default: the built-in ones).
    """
    caller = webhooks.Caller(reader)
    ordered: list[Plugin] = [
        NamespaceLifecycle(reader),
        LimitRanger(reader),
        ServiceAccount(reader),
        nodes.NodeRestriction(reader, authorizer),
        nodes.TaintNodesByCondition(),
        security.PodSecurity(reader),
        pods.Priority(reader),
        pods.DefaultTolerationSeconds(),
        storage.DefaultStorageClass(reader),
        storage.StorageObjectInUseProtection(),
        storage.PersistentVolumeClaimResize(reader),
        pods.RuntimeClass(reader),
        CertificateApproval(reader, authorizer),
        CertificateSigning(reader, authorizer),
        CertificateSubjectRestriction(),
        storage.DefaultIngressClass(reader),
        pods.PodTopologyLabels(reader),
        webhooks.MutatingAdmissionWebhook(reader, authorizer, caller),
        RbacEscalation(reader, authorizer),  # after everything that changes a role
        ValidatingAdmissionPolicy(reader, authorizer, by_kind or _builtin_by_kind),
        webhooks.ValidatingAdmissionWebhook(reader, authorizer, caller),
        *extra,
        ResourceQuota(reader, writer),
    ]
    known = {p.name for p in ordered}
    for name in (*config.enable, *config.disable):
        if name not in known:
            raise ValueError(f'admission plugin "{name}" is unknown')
    return Chain([p for p in ordered if p.name not in config.disable], caller)


def _builtin_by_kind(group: str, version: str, kind: str) -> Resource | None:
    return next((r for r in resources.builtin() if (r.group, r.version, r.kind) == (group, version, kind)), None)
