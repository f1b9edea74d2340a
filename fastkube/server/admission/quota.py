"""ResourceQuota: no namespace takes more than it was given, to the last unit, however many ask at once.

Laws:
1. What is used is what is stored: a ledger per quota, made by counting once and kept by the store's changes. There is nothing to resynchronize.
2. A write that is admitted holds its share from that moment (synchronously: nothing can come between) until its object is visible, when the ledger
   counts it, or until its rollback. Deletions give back as they become visible.
3. status.used follows the ledger within STATUS_DELAY_SECONDS, whoever made the changes; `run` is the task that writes it.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from fastkube.api import resources
from fastkube.api.errors import ApiError
from fastkube.api.quantity import nanos, parse, text
from fastkube.api.resources import Resource
from fastkube.server.admission.plugin import CREATE, UPDATE, Plugin, forbidden
from fastkube.server.admission.usage import Amounts, evaluator, governed, in_scope, missing_compute
from fastkube.server.reader import Object, Reader
from fastkube.server.request import AdmissionAttributes
from fastkube.server.writer import Writer

QUOTAS = resources.parse("v1/resourcequotas")
STATUS_DELAY_SECONDS = 0.1
STATUS_RETRY_SECONDS = 1.0


class Ledger:
    """One quota: its bounds, what is used, and what admitted writes hold."""

    __slots__ = ("governs", "hard", "held", "name", "spec", "texts", "used")

    def __init__(self, quota: Object) -> None:
        self.name: str = quota["metadata"]["name"]
        self.spec: Object = quota["spec"]
        self.texts: dict[str, str] = self.spec.get("hard") or {}
        self.hard: Amounts = {name: nanos(value) for name, value in self.texts.items()}
        self.governs = {g for g in map(governed, self.hard) if g}
        self.used: Amounts = dict.fromkeys(self.hard, 0)
        self.held: Amounts = dict.fromkeys(self.hard, 0)

    def concerns(self, resource: Resource, obj: Object) -> bool:
        """Whether this quota looks at `obj` at all."""
        return (resource.group, resource.plural) in self.governs and in_scope(self.spec, obj)

    def usage(self, resource: Resource, obj: Object | None) -> Amounts:
        """What `obj` takes of what this quota bounds."""
        if obj is None or not self.concerns(resource, obj):
            return {}
        return {name: amount for name, amount in evaluator(resource)(obj).items() if name in self.hard}

    def count(self, resource: Resource, new: Object | None, old: Object | None) -> bool:
        """Take a stored change into account; whether it made a difference."""
        before, after = self.usage(resource, old), self.usage(resource, new)
        if before == after:
            return False
        for name, amount in before.items():
            self.used[name] -= amount
        for name, amount in after.items():
            self.used[name] += amount
        return True

    def exceeded(self, wanted: Amounts) -> str:
        """Why `wanted` more does not fit; "" when it does."""
        over = sorted(name for name, amount in wanted.items() if amount > 0 and self.used[name] + self.held[name] + amount > self.hard[name])
        if not over:
            return ""
        asked = ",".join(f"{n}={self._text(n, wanted[n])}" for n in over)
        used = ",".join(f"{n}={self._text(n, self.used[n] + self.held[n])}" for n in over)
        limited = ",".join(f"{n}={self._text(n, self.hard[n])}" for n in over)
        return f"exceeded quota: {self.name}, requested: {asked}, used: {used}, limited: {limited}"

    def _text(self, name: str, amount: int) -> str:
        return text(amount, parse(self.texts[name])[1])

    def status(self) -> Object:
        return {"hard": dict(self.texts), "used": {name: self._text(name, amount) for name, amount in self.used.items()}}


class ResourceQuota(Plugin):
    name = "ResourceQuota"

    def __init__(self, reader: Reader, writer: Writer, find: Callable[[str, str], Resource | None] | None = None) -> None:
        """`find(group, plural)` names the served resource that a quota counts (default: the built-in ones)."""
        self._reader, self._writer = reader, writer
        self._find = find or _builtin
        self._ledgers: dict[str, dict[str, Ledger]] = {}  # namespace -> name
        self._followed: set[Resource] = set()
        self._holds: dict[str, list[list[tuple[Ledger, Amounts]]]] = {}  # uid of an object in flight -> holds, oldest first
        self._dirty: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()
        reader.on_change(QUOTAS, self._quota_changed)
        for quota in reader.list(QUOTAS):
            self._quota_changed(quota, None)

    def handles(self, operation: str, resource: Resource, subresource: str) -> bool:
        if not resource.namespaced or operation not in (CREATE, UPDATE) or resource.plural == "events":
            return False
        return not subresource or (resource.plural == "pods" and subresource == "resize")

    def validate(self, attributes: AdmissionAttributes) -> None:
        ledgers = self._ledgers.get(attributes.namespace)
        if not ledgers or attributes.obj is None:
            return
        obj, resource = attributes.obj, attributes.resource
        holds: list[tuple[Ledger, Amounts]] = []
        for ledger in ledgers.values():
            if not ledger.concerns(resource, obj):
                continue
            self._demand(attributes, ledger, obj)
            usage = ledger.usage(resource, obj)
            before = ledger.usage(resource, attributes.old)
            wanted = {name: amount - before.get(name, 0) for name, amount in usage.items() if amount > before.get(name, 0)}
            if not wanted:
                continue
            problem = ledger.exceeded(wanted)
            if problem:
                raise forbidden(attributes, problem)
            holds.append((ledger, wanted))
        if holds:
            self._hold(attributes, obj["metadata"].get("uid", ""), holds)

    async def run(self) -> None:
        """Keep status.used of all quotas up to date; a task body."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(STATUS_DELAY_SECONDS)
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            failed = set()
            for key in dirty:
                try:
                    await self._write_status(*key)
                except ApiError:
                    failed.add(key)
            if failed:
                await asyncio.sleep(STATUS_RETRY_SECONDS)
                self._dirty |= failed
                self._wake.set()

    # -- admission ----------------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _demand(attributes: AdmissionAttributes, ledger: Ledger, obj: Object) -> None:
        """A quota on cpu or memory demands that every container says how much it takes."""
        if attributes.resource.plural != "pods" or attributes.resource.group:
            return
        missing = missing_compute(obj["spec"], ledger.hard)
        if missing:
            words = "; ".join(f"{name} for: {','.join(sorted(set(containers)))}" for name, containers in sorted(missing.items()))
            raise forbidden(attributes, f"failed quota: {ledger.name}: must specify {words}")

    def _hold(self, attributes: AdmissionAttributes, uid: str, holds: list[tuple[Ledger, Amounts]]) -> None:
        for ledger, amounts in holds:
            for name, amount in amounts.items():
                ledger.held[name] += amount
        self._holds.setdefault(uid, []).append(holds)
        attributes.rollbacks.append(lambda: self._release(uid, holds))

    def _release(self, uid: str, holds: list[tuple[Ledger, Amounts]] | None = None) -> None:
        """Let go of `holds`, or of the oldest ones of `uid` (its object became visible)."""
        pending = self._holds.get(uid)
        if not pending:
            return
        index = next((i for i, h in enumerate(pending) if h is holds), 0)
        for ledger, amounts in pending.pop(index):
            for name, amount in amounts.items():
                ledger.held[name] -= amount
        if not pending:
            del self._holds[uid]

    # -- the store's changes ------------------------------------------------------------------------------------------------------------------

    def _quota_changed(self, new: Object | None, old: Object | None) -> None:
        meta = (new or old or {})["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        if new is None:
            ledgers = self._ledgers.get(namespace, {})
            ledgers.pop(name, None)
            if not ledgers:
                self._ledgers.pop(namespace, None)
            return
        if old is None or old["spec"] != new["spec"]:
            self._open(namespace, Ledger(new))
        if new.get("status") != self._ledgers[namespace][name].status():
            self._touch(namespace, name)

    def _open(self, namespace: str, ledger: Ledger) -> None:
        """Count what is there, and follow it from now on. What is in flight for the ledger's predecessor stays held."""
        known = self._ledgers.setdefault(namespace, {}).get(ledger.name)
        for group, plural in ledger.governs:
            resource = self._find(group, plural)
            if resource is None:
                continue
            for obj in self._reader.list(resource, namespace):
                ledger.count(resource, obj, None)
            if resource not in self._followed:
                self._followed.add(resource)
                self._reader.on_change(resource, self._follower(resource))
        if known is not None:
            for pending in self._holds.values():
                for holds in pending:
                    for i, (held_by, amounts) in enumerate(holds):
                        if held_by is known:
                            holds[i] = (ledger, {n: a for n, a in amounts.items() if n in ledger.held})
                            for n, a in holds[i][1].items():
                                ledger.held[n] += a
        self._ledgers[namespace][ledger.name] = ledger

    def _follower(self, resource: Resource) -> Callable[[Object | None, Object | None], None]:
        def changed(new: Object | None, old: Object | None) -> None:
            meta: dict[str, Any] = (new or old or {})["metadata"]
            if self._holds:
                self._release(meta.get("uid", ""))
            ledgers = self._ledgers.get(meta.get("namespace", ""))
            if ledgers:
                for ledger in ledgers.values():
                    if ledger.count(resource, new, old):
                        self._touch(meta["namespace"], ledger.name)

        return changed

    # -- status -------------------------------------------------------------------------------------------------------------------------------

    def _touch(self, namespace: str, name: str) -> None:
        self._dirty.add((namespace, name))
        self._wake.set()

    async def _write_status(self, namespace: str, name: str) -> None:
        ledger, quota = self._ledgers.get(namespace, {}).get(name), self._reader.get(QUOTAS, namespace, name)
        if ledger is None or quota is None or ledger.spec != quota["spec"]:
            return
        status = ledger.status()
        if quota.get("status") != status:
            await self._writer.update(QUOTAS, {**copy.deepcopy(quota), "status": status}, "status")


def _builtin(group: str, plural: str) -> Resource | None:
    return next((r for r in resources.builtin() if r.group == group and r.plural == plural), None)
