"""apps/v1: Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision."""

from __future__ import annotations

from fastkube.api import internal
from fastkube.api.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from fastkube.api.kinds import pod_defaults, pod_spec
from fastkube.api.kinds.base import METADATA, Kind, Object
from fastkube.api.kinds.common import Errors, immutable, is_zero, label_selector, nonnegative, not_more_than_100_percent, positive_int_or_percent
from fastkube.api.kinds.storage import claim_spec, claim_warnings, default_claim
from fastkube.api.kinds.workloads import counts, needs_labels, no_more_than_there_are, selected_template, template_for, template_warnings, workload_selector

GROUP = "apps"


class _Workload(Kind):
    """Kinds with a selector and a pod template under spec."""

    group = GROUP
    what = ""

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        pod_defaults.template(spec.setdefault("template", {}), needs_labels(spec.get("selector")))
        self.default_spec(spec)

    def default_spec(self, spec: Object) -> None: ...

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self.validate_spec(obj["spec"])

    def validate_spec(self, spec: Object) -> Errors:
        return []

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_spec(obj["spec"]) + immutable(obj["spec"].get("selector"), old["spec"].get("selector"), "spec.selector")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        return template_warnings(obj["spec"].get("template"), old["spec"].get("template") if old else None)


class Deployment(_Workload):
    kind = "Deployment"
    status_metadata = ("annotations", "ownerReferences", "finalizers")

    def prepare_update(self, obj: Object, old: Object) -> None:
        """Annotations count as the spec does."""
        super().prepare_update(obj, old)
        before = old["metadata"].get("generation", 0)
        if obj["metadata"].get("generation", 0) == before and (obj["metadata"].get("annotations") or {}) != (old["metadata"].get("annotations") or {}):
            obj["metadata"]["generation"] = before + 1

    def default_spec(self, spec: Object) -> None:
        if spec.get("replicas") is None:
            spec["replicas"] = 1
        strategy = spec.setdefault("strategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            for key in ("maxUnavailable", "maxSurge"):
                if rolling.get(key) is None:
                    rolling[key] = "25%"
        if spec.get("revisionHistoryLimit") is None:
            spec["revisionHistoryLimit"] = 10
        if spec.get("progressDeadlineSeconds") is None:
            spec["progressDeadlineSeconds"] = 600

    def validate_spec(self, spec: Object) -> Errors:
        errors = nonnegative(spec.get("replicas"), "spec.replicas")
        bad, sound = workload_selector(spec, "spec", "deployment")
        errors += bad
        if not sound:
            errors.append(invalid_value("spec.selector", spec["selector"], "invalid label selector"))
        else:
            errors += selected_template(spec, "spec") + template_for(spec.get("template"), "spec.template", "ReplicaSet")
        errors += self._strategy(spec.get("strategy") or {})
        errors += nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds") + nonnegative(spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")
        deadline = spec.get("progressDeadlineSeconds")
        if deadline is not None:
            errors += nonnegative(deadline, "spec.progressDeadlineSeconds")
            if deadline <= spec.get("minReadySeconds", 0):
                errors.append(invalid_value("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"))
        return errors

    def _strategy(self, strategy: Object) -> Errors:
        at, rolling = "spec.strategy", strategy.get("rollingUpdate")
        if strategy.get("type") == "Recreate":
            return [forbidden_field(f"{at}.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")] if rolling is not None else []
        if strategy.get("type") != "RollingUpdate":
            return [not_supported(at, internal.view("apps.v1.DeploymentStrategy", strategy), ("Recreate", "RollingUpdate"))]
        if rolling is None:
            return [required(f"{at}.rollingUpdate", "this should be defaulted and never be nil")]
        at += ".rollingUpdate"
        unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
        errors = positive_int_or_percent(unavailable, f"{at}.maxUnavailable") + positive_int_or_percent(surge, f"{at}.maxSurge")
        if is_zero(unavailable) and is_zero(surge):
            errors.append(invalid_value(f"{at}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0"))
        return errors + not_more_than_100_percent(unavailable, f"{at}.maxUnavailable")

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        names = (
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        )
        errors = counts(status, "status", *names)
        errors += no_more_than_there_are(status, ("updatedReplicas", "readyReplicas", "availableReplicas"))
        before, now = (old.get("status") or {}).get("collisionCount"), status.get("collisionCount")
        if before is not None and (now is None or now < before):
            errors.append(invalid_value("status.collisionCount", now or 0, "cannot be decremented"))
        return errors


class ReplicaSet(_Workload):
    kind = "ReplicaSet"
    status_metadata = METADATA
    field_labels = ("status.replicas",)

    def default_spec(self, spec: Object) -> None:
        if spec.get("replicas") is None:
            spec["replicas"] = 1

    def validate_spec(self, spec: Object) -> Errors:
        errors = nonnegative(spec.get("replicas"), "spec.replicas") + nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
        bad, sound = workload_selector(spec, "spec", "deployment")  # sic
        errors += bad
        if not sound:
            return [*errors, invalid_value("spec.selector", spec["selector"], "invalid label selector")]
        return errors + selected_template(spec, "spec") + template_for(spec.get("template"), "spec.template", "ReplicaSet")

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        names = ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "terminatingReplicas", "observedGeneration")
        errors = counts(status, "status", *names)
        errors += no_more_than_there_are(status, names[1:4])
        return errors

    def fields(self, obj: Object) -> dict[str, str]:
        return {"status.replicas": str((obj.get("status") or {}).get("replicas", 0))}


_STATEFULSET_MUTABLE = ("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy", "minReadySeconds")


class StatefulSet(_Workload):
    kind = "StatefulSet"
    status_metadata = METADATA
    name_rule = "label"

    def default_spec(self, spec: Object) -> None:
        if not spec.get("podManagementPolicy"):
            spec["podManagementPolicy"] = "OrderedReady"
        strategy = spec.setdefault("updateStrategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
            strategy.setdefault("rollingUpdate", {})
        rolling = strategy.get("rollingUpdate")
        if strategy["type"] == "RollingUpdate" and rolling is not None and rolling.get("partition") is None:
            rolling["partition"] = 0
        retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
        for key in ("whenDeleted", "whenScaled"):
            if not retention.get(key):
                retention[key] = "Retain"
        if spec.get("replicas") is None:
            spec["replicas"] = 1
        if spec.get("revisionHistoryLimit") is None:
            spec["revisionHistoryLimit"] = 10
        for claim in spec.get("volumeClaimTemplates") or ():
            default_claim(claim)
            claim["apiVersion"], claim["kind"] = "v1", "PersistentVolumeClaim"

    def validate_spec(self, spec: Object) -> Errors:
        policy = spec.get("podManagementPolicy")
        errors: Errors = []
        if policy not in ("OrderedReady", "Parallel"):
            errors.append(invalid_value("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'"))
        errors += self._strategy(spec.get("updateStrategy") or {})
        retention = spec.get("persistentVolumeClaimRetentionPolicy") or {}
        for key in ("whenDeleted", "whenScaled"):
            if retention.get(key) not in ("Retain", "Delete"):
                errors.append(not_supported(f"spec.persistentVolumeClaimRetentionPolicy.{key}", retention.get(key) or "", ("Retain", "Delete")))
        errors += nonnegative(spec.get("replicas"), "spec.replicas") + nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
        errors += nonnegative((spec.get("ordinals") or {}).get("start"), "spec.ordinals.start")
        errors += nonnegative(spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")
        for i, claim in enumerate(spec.get("volumeClaimTemplates") or ()):
            errors += claim_spec(claim.get("spec") or {}, f"spec.volumeClaimTemplates[{i}].spec")
        bad, sound = workload_selector(spec, "spec", "statefulset")
        errors += bad
        template = spec.get("template") or {}
        if not sound:
            errors.append(invalid_value("spec.selector", spec["selector"], "invalid label selector"))
        else:
            errors += selected_template(spec, "spec") + pod_spec.template(_with_claims(spec, template), "spec.template")
        pod = template.get("spec") or {}
        if pod.get("restartPolicy") != "Always":
            errors.append(not_supported("spec.template.spec.restartPolicy", pod.get("restartPolicy") or "", ("Always",)))
        if pod.get("activeDeadlineSeconds") is not None:
            errors.append(forbidden_field("spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in StatefulSet is not Supported"))
        return errors

    def _strategy(self, strategy: Object) -> Errors:
        at, kind, rolling = "spec.updateStrategy", strategy.get("type"), strategy.get("rollingUpdate")
        if not kind:
            return [required(at)]
        if kind == "OnDelete":
            return [invalid_value(f"{at}.rollingUpdate", rolling, "only allowed for updateStrategy 'RollingUpdate'")] if rolling is not None else []
        if kind != "RollingUpdate":
            return [invalid_value(at, internal.view("apps.v1.StatefulSetUpdateStrategy", strategy), "must be 'RollingUpdate' or 'OnDelete'")]
        if rolling is None:
            return []
        errors = nonnegative(rolling.get("partition"), f"{at}.rollingUpdate.partition")
        most = rolling.get("maxUnavailable")
        if most is not None:
            here = f"{at}.rollingUpdate.maxUnavailable"
            errors += positive_int_or_percent(most, here)
            if is_zero(most):
                errors.append(invalid_value(here, most, "cannot be 0"))
            errors += not_more_than_100_percent(most, here)
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        errors = self.validate_spec(obj["spec"])
        new, before = obj["spec"], old["spec"]
        changed = {k for k in {*new, *before} if new.get(k) != before.get(k)} - set(_STATEFULSET_MUTABLE)
        if changed:
            text = (
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit',"
                " 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
            )
            errors.append(forbidden_field("spec", text))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        names = ("replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas", "observedGeneration", "collisionCount")
        errors = counts(status, "status", *names)
        errors += no_more_than_there_are(status, names[1:5], ready="status.readyReplicas")
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        out = super().warnings(obj, old)
        for i, claim in enumerate(obj["spec"].get("volumeClaimTemplates") or ()):
            out += claim_warnings(claim.get("spec") or {}, f"spec.volumeClaimTemplates[{i}].spec")
        if (obj["spec"].get("revisionHistoryLimit") or 0) < 0:
            out.append("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
        return out


def _with_claims(spec: Object, template: Object) -> Object:
    """The template as its pods will be: with a volume for each claim template, which hides a volume of that name."""
    claims = spec.get("volumeClaimTemplates") or ()
    if not claims:
        return template
    names = [(claim.get("metadata") or {}).get("name") or "" for claim in claims]
    pod = template.get("spec") or {}
    kept = [v for v in pod.get("volumes") or () if v.get("name") not in names]
    return {**template, "spec": {**pod, "volumes": [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names] + kept}}


class DaemonSet(_Workload):
    kind = "DaemonSet"
    status_metadata = METADATA
    GENERATION = "deprecated.daemonset.template.generation"

    def default(self, obj: Object) -> None:
        super().default(obj)
        annotations = obj["metadata"].setdefault("annotations", {})
        annotations.setdefault(self.GENERATION, "0")  # the write's own count follows when it is prepared

    def default_spec(self, spec: Object) -> None:
        strategy = spec.setdefault("updateStrategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            if rolling.get("maxUnavailable") is None:
                rolling["maxUnavailable"] = 1
            if rolling.get("maxSurge") is None:
                rolling["maxSurge"] = 0
        if spec.get("revisionHistoryLimit") is None:
            spec["revisionHistoryLimit"] = 10

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        obj["metadata"].setdefault("annotations", {})[self.GENERATION] = "1"

    def prepare_update(self, obj: Object, old: Object) -> None:
        super().prepare_update(obj, old)
        before = (old["metadata"].get("annotations") or {}).get(self.GENERATION, "0")
        count = int(before) if before.isdigit() else 0
        if obj["spec"].get("template") != old["spec"].get("template"):
            count += 1
        obj["metadata"].setdefault("annotations", {})[self.GENERATION] = str(count)

    def validate_spec(self, spec: Object) -> Errors:
        selector, template = spec.get("selector"), spec.get("template")
        errors = label_selector(selector, "spec.selector")
        if not errors:
            errors += selected_template(spec, "spec")
        if selector is not None and not selector.get("matchLabels") and not selector.get("matchExpressions"):
            errors.append(invalid_value("spec.selector", selector, "empty selector is invalid for daemonset"))
        errors += pod_spec.template(template, "spec.template")
        pod = (template or {}).get("spec") or {}
        if pod.get("restartPolicy") != "Always":
            errors.append(not_supported("spec.template.spec.restartPolicy", pod.get("restartPolicy") or "", ("Always",)))
        if pod.get("activeDeadlineSeconds") is not None:
            errors.append(forbidden_field("spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in DaemonSet is not Supported"))
        errors += nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
        errors += self._strategy(spec.get("updateStrategy") or {})
        return errors + nonnegative(spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return immutable(obj["spec"].get("selector"), old["spec"].get("selector"), "spec.selector") + self.validate_spec(obj["spec"])

    def _strategy(self, strategy: Object) -> Errors:
        at, rolling = "spec.updateStrategy", strategy.get("rollingUpdate")
        if strategy.get("type") == "OnDelete":
            return []
        if strategy.get("type") != "RollingUpdate":
            return [not_supported(f"{at}.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))]
        at += ".rollingUpdate"
        if rolling is None:
            return [required(at)]
        unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
        errors = positive_int_or_percent(unavailable, f"{at}.maxUnavailable") + not_more_than_100_percent(unavailable, f"{at}.maxUnavailable")
        errors += positive_int_or_percent(surge, f"{at}.maxSurge") + not_more_than_100_percent(surge, f"{at}.maxSurge")
        if not is_zero(unavailable) and not is_zero(surge):
            errors.append(invalid_value(f"{at}.maxSurge", surge, "may not be set when maxUnavailable is non-zero"))
        elif is_zero(unavailable) and is_zero(surge):
            errors.append(required(f"{at}.maxUnavailable", "cannot be 0 when maxSurge is 0"))
        return errors

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        names = (
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        )
        return counts(obj.get("status") or {}, "status", *names)


class ControllerRevision(Kind):
    group = GROUP
    kind = "ControllerRevision"
    has_status = False
    has_generation = False

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = (
            []
            if isinstance(obj.get("data"), dict)
            else [required("data", "data must be a valid JSON object" if obj.get("data") is not None else "data is mandatory")]
        )
        return errors + nonnegative(obj.get("revision", 0), "revision")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj) + immutable(obj.get("data"), old.get("data"), "data")


KINDS = [Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision]
