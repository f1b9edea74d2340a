"""batch/v1: Job and CronJob."""

from __future__ import annotations

import functools
import re
import zoneinfo
from typing import Any

from fastkube.api import formats, internal
from fastkube.api.errors import FieldError, duplicate, invalid_value, not_supported, required, too_long, too_many
from fastkube.api.kinds import cron, pod_defaults, pod_spec
from fastkube.api.kinds.base import METADATA, Kind, Object, null_when_empty
from fastkube.api.kinds.common import Errors, immutable, label_selector, nonnegative, rule
from fastkube.api.kinds.workloads import counts, selected_template, template_warnings

GROUP = "batch"
CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
JOB_NAME = "batch.kubernetes.io/job-name"
_PARALLEL_INDEXED_MAX = 100_000
_COMPLETIONS_MAX = 100_000
_FAILURE_RULES_MAX = 20
_BACKOFF_MAX = 2**31 - 1


class Job(Kind):
    group = GROUP
    kind = "Job"
    status_metadata = METADATA
    field_labels = ("status.successful",)

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        template = spec.setdefault("template", {})
        if spec.get("completions") is None and spec.get("parallelism") is None:
            spec["completions"] = spec["parallelism"] = 1
        if spec.get("parallelism") is None:
            spec["parallelism"] = 1
        if spec.get("backoffLimit") is None:
            spec["backoffLimit"] = 6 if spec.get("backoffLimitPerIndex") is None else _BACKOFF_MAX
        if spec.get("completionMode") is None:
            spec["completionMode"] = "NonIndexed"
        if spec.get("suspend") is None:
            spec["suspend"] = False
        if spec.get("manualSelector") is None:
            spec["manualSelector"] = False
        for entry in (spec.get("podFailurePolicy") or {}).get("rules") or ():
            for pattern in entry.get("onPodConditions") or ():
                if not pattern.get("status"):
                    pattern["status"] = "True"
        if spec.get("podReplacementPolicy") is None:
            spec["podReplacementPolicy"] = "Failed" if spec.get("podFailurePolicy") is not None else "TerminatingOrFailed"
        labels = (template.get("metadata") or {}).get("labels")
        if labels and not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(labels)
        job_template_spec(spec)

    def prepare_create(self, obj: Object) -> None:
        super().prepare_create(obj)
        spec, meta = obj["spec"], obj["metadata"]
        null_when_empty(spec.get("podFailurePolicy"), "rules")
        if spec.get("manualSelector"):
            return
        # The selector is the job's own: by its uid, which the template's labels carry.
        template = spec["template"]
        labels = template.setdefault("metadata", {}).setdefault("labels", {})
        uid, name = meta.get("uid", ""), meta.get("name", "")
        for own, value in (("controller-uid", uid), ("job-name", name), (CONTROLLER_UID, uid), (JOB_NAME, name)):
            labels[own] = value
        if spec.get("selector") is None:
            spec["selector"] = {}
        spec["selector"].setdefault("matchLabels", {})[CONTROLLER_UID] = uid
        if formats.label_value(name):
            pass  # the name makes no label, so the job is refused: for its template's labels, not for its own
        elif not meta.get("labels"):
            meta["labels"] = dict(labels)
        else:
            for own in ("controller-uid", "job-name", CONTROLLER_UID, JOB_NAME):
                meta["labels"].setdefault(own, labels[own])

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors = self._generated(obj)
        spec = obj["spec"]
        errors += job_spec(spec, "spec") + _selection(spec)
        completions = spec.get("completions")
        if spec.get("completionMode") == "Indexed" and completions is not None and completions > 0:
            name = obj["metadata"].get("name") or ""
            hostname = f"{name}-{completions - 1}"
            if formats.label(hostname):
                errors.append(invalid_value("metadata.name", name, f"will not able to create pod with invalid DNS label: {hostname}"))
        return errors

    def _generated(self, obj: Object) -> Errors:
        spec, uid, name = obj["spec"], obj["metadata"].get("uid", ""), obj["metadata"].get("name", "")
        if spec.get("manualSelector"):
            return []
        errors: Errors = []
        labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        for key, value in ((CONTROLLER_UID, uid), (JOB_NAME, name)):
            if key not in labels:
                errors.append(required(f"spec.template.metadata.labels[{key}]", f"must be '{value}'"))
            elif labels[key] != value:
                errors.append(invalid_value(f"spec.template.metadata.labels[{key}]", labels, f"must be '{value}'"))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        new, before = obj["spec"], old["spec"]
        errors = (job_spec(new, "spec") + _selection(new)) * 2  # upstream's strategy and its update check both validate the whole
        errors += self._completions(new, before)
        errors += immutable(new.get("selector"), before.get("selector"), "spec.selector")
        errors += self._template(new, before, old)
        errors += immutable(new.get("completionMode"), before.get("completionMode"), "spec.completionMode")
        for key, definition in (
            ("podFailurePolicy", "batch.v1.PodFailurePolicy"),
            ("backoffLimitPerIndex", ""),
            ("managedBy", ""),
            ("successPolicy", "batch.v1.SuccessPolicy"),
        ):
            if (new.get(key) if new.get(key) is not None else None) != before.get(key):
                value = internal.view(definition, new.get(key)) if definition and new.get(key) is not None else new.get(key)
                errors.append(invalid_value(f"spec.{key}", value, "field is immutable"))
        return errors

    def _completions(self, new: Object, old: Object) -> Errors:
        """Indexed jobs may be made longer or shorter together with their parallelism."""
        if new.get("completions") == old.get("completions"):
            return []
        if new.get("completionMode") != "Indexed" or old.get("completionMode") != "Indexed":
            return immutable(new.get("completions"), old.get("completions"), "spec.completions")
        if new.get("completions") is None:
            return immutable(None, old.get("completions"), "spec.completions")
        if new.get("completions") != new.get("parallelism"):
            return [invalid_value("spec.completions", new["completions"], "can only be modified in tandem with spec.parallelism")]
        return []

    def _template(self, new: Object, old: Object, stored: Object) -> Errors:
        """While a job is suspended and has not started, where and with what its pods run may still change."""
        template, before = new.get("template") or {}, old.get("template") or {}
        if old.get("suspend") and (stored.get("status") or {}).get("startTime") is None:
            template = _scheduling_of(template, before)
        if template == before:
            return []
        return [invalid_value("spec.template", internal.view("core.v1.PodTemplateSpec", new.get("template") or {}), "field is immutable")]

    def validate_status(self, obj: Object, old: Object) -> list[FieldError]:
        status = obj.get("status") or {}
        errors = counts(status, "status", "active", "succeeded", "failed", "ready", "terminating")
        uncounted = status.get("uncountedTerminatedPods") or {}
        seen: set[str] = set()
        for key in ("succeeded", "failed"):
            for i, uid in enumerate(uncounted.get(key) or ()):
                if not uid:
                    errors.append(invalid_value(f"status.uncountedTerminatedPods.{key}[{i}]", uid, "must not be empty"))
                elif uid in seen:
                    errors.append(duplicate(f"status.uncountedTerminatedPods.{key}[{i}]", uid))
                seen.add(uid)
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        return _job_warnings(obj["spec"], old["spec"] if old else None, "spec")

    def fields(self, obj: Object) -> dict[str, str]:
        return {"status.successful": str((obj.get("status") or {}).get("succeeded", 0))}


def _job_warnings(spec: Object, old: Object | None, at: str) -> list[str]:
    out = []
    completions, parallelism = spec.get("completions") or 0, spec.get("parallelism") or 0
    if spec.get("completionMode") == "Indexed" and completions > 100_000 and parallelism > 10_000:
        out.append(
            "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        )
    return out + template_warnings(spec.get("template"), old.get("template") if old else None, f"{at}.template")


def _scheduling_of(template: Object, old: Object) -> Object:
    """`template` with the old one's scheduling directives and resources."""
    spec, before = dict(template.get("spec") or {}), old.get("spec") or {}
    for key in ("nodeSelector", "tolerations", "schedulingGates", "affinity"):
        spec.pop(key, None)
        if key in before:
            spec[key] = before[key]
    for key in ("containers", "initContainers"):
        if key in spec and len(spec[key] or ()) == len(before.get(key) or ()):
            spec[key] = [{**c, "resources": o.get("resources", {})} for c, o in zip(spec[key], before[key], strict=True)]
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if k not in ("labels", "annotations")}
    meta.update({k: v for k, v in (old.get("metadata") or {}).items() if k in ("labels", "annotations")})
    return {**template, "metadata": meta, "spec": spec}


def job_template_spec(spec: Object) -> None:
    pod_defaults.template(spec.setdefault("template", {}))


def _selection(spec: Object) -> Errors:
    errors: Errors = []
    if spec.get("selector") is None:
        errors.append(required("spec.selector"))
    else:
        bad = label_selector(spec["selector"], "spec.selector")
        errors += bad
        if bad:
            return errors
    return errors + selected_template(spec, "spec")


def job_spec(spec: Object, at: str) -> Errors:
    """What a Job's spec and a CronJob's job template have in common."""
    errors: Errors = []
    for key in ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex"):
        if spec.get(key) is not None:
            errors += nonnegative(spec[key], f"{at}.{key}")
            if key == "backoffLimitPerIndex" and spec.get("completionMode") != "Indexed":
                errors.append(invalid_value(f"{at}.{key}", spec[key], "requires indexed completion mode"))
    most = spec.get("maxFailedIndexes")
    if most is not None:
        errors += nonnegative(most, f"{at}.maxFailedIndexes")
        if spec.get("backoffLimitPerIndex") is None:
            errors.append(required(f"{at}.backoffLimitPerIndex", "when maxFailedIndexes is specified"))
    if spec.get("managedBy") is not None:
        errors += _domain_path(spec["managedBy"], f"{at}.managedBy")
    errors += _completion_mode(spec, at)
    policy = spec.get("podReplacementPolicy")
    if policy is not None:
        if spec.get("podFailurePolicy") is not None:
            if policy != "Failed":
                errors.append(not_supported(f"{at}.podReplacementPolicy", policy, ("Failed",)))
        elif policy not in ("Failed", "TerminatingOrFailed"):
            errors.append(not_supported(f"{at}.podReplacementPolicy", policy, ("Failed", "TerminatingOrFailed")))
    template = spec.get("template") or {}
    errors += pod_spec.template(template, f"{at}.template")
    restart = (template.get("spec") or {}).get("restartPolicy")
    here = f"{at}.template.spec.restartPolicy"
    if restart in (None, "", "Always"):
        errors.append(required(here, 'valid values: "OnFailure", "Never"'))
    elif restart not in ("OnFailure", "Never"):
        errors.append(not_supported(here, restart, ("OnFailure", "Never")))
    elif restart != "Never" and spec.get("podFailurePolicy") is not None:
        errors.append(invalid_value(here, restart, 'only "Never" is supported when podFailurePolicy is specified'))
    if spec.get("podFailurePolicy") is not None:
        errors += _failure_policy(spec, f"{at}.podFailurePolicy")
    if spec.get("successPolicy") is not None:
        errors += _success_policy(spec, f"{at}.successPolicy")
    return errors


def _completion_mode(spec: Object, at: str) -> Errors:
    mode, completions, parallelism = spec.get("completionMode"), spec.get("completions"), spec.get("parallelism") or 0
    if mode is None:
        return []
    if mode not in ("NonIndexed", "Indexed"):
        return [not_supported(f"{at}.completionMode", mode, ("NonIndexed", "Indexed"))]
    if mode != "Indexed":
        return []
    errors: Errors = []
    if completions is None:
        errors.append(required(f"{at}.completions", "when completion mode is Indexed"))
    if parallelism > _PARALLEL_INDEXED_MAX:
        errors.append(invalid_value(f"{at}.parallelism", parallelism, f"must be less than or equal to {_PARALLEL_INDEXED_MAX} when completion mode is Indexed"))
    if spec.get("backoffLimitPerIndex") is not None:
        most = spec.get("maxFailedIndexes")
        if most is not None and most > _COMPLETIONS_MAX:
            errors.append(invalid_value(f"{at}.maxFailedIndexes", most, f"must be less than or equal to {_COMPLETIONS_MAX}"))
        if completions is not None and completions > _COMPLETIONS_MAX and parallelism > 10_000:
            errors.append(
                invalid_value(
                    f"{at}.parallelism",
                    parallelism,
                    f"must be less than or equal to 10000 when completions are above {_COMPLETIONS_MAX} and used with backoff limit per index",
                )
            )
    return errors


def _domain_path(value: str, at: str) -> Errors:
    if len(value.encode()) > 63:
        return [too_long(at, 63)]
    if not value:
        return [required(at)]
    host, slash, path = value.partition("/")
    if not (slash and host and path):
        return [invalid_value(at, value, 'must be a domain-prefixed path (such as "acme.io/foo")')]
    errors = [invalid_value(at, host, m) for m in formats.subdomain(host)]
    if not re.fullmatch(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", path):
        errors.append(invalid_value(at, path, formats.regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+")))
    return errors


def _go_list(options: tuple[str, ...]) -> str:
    return "[" + " ".join(f'"{o}"' for o in options) + "]"


_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")


def _failure_policy(spec: Object, at: str) -> Errors:
    errors: Errors = []
    rules = spec["podFailurePolicy"].get("rules") or []
    pod = (spec.get("template") or {}).get("spec") or {}
    names = {c.get("name") for key in ("containers", "initContainers") for c in pod.get(key) or ()}
    if len(rules) > _FAILURE_RULES_MAX:
        errors.append(too_many(f"{at}.rules", len(rules), _FAILURE_RULES_MAX))
    for i, entry in enumerate(rules):
        errors += _failure_rule(entry, names, spec, f"{at}.rules[{i}]")
    return errors


def _failure_rule(entry: Object, names: set[Any], spec: Object, at: str) -> Errors:
    errors: Errors = []
    action = entry.get("action") or ""
    if not action:
        errors.append(required(f"{at}.action", f"valid values: {_go_list(_ACTIONS)}"))
    elif action == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
        errors.append(invalid_value(f"{at}.action", action, "requires the backoffLimitPerIndex to be set"))
    elif action not in _ACTIONS:
        errors.append(not_supported(f"{at}.action", action, _ACTIONS))
    codes, conditions = entry.get("onExitCodes"), entry.get("onPodConditions") or []
    if codes is not None:
        errors += _exit_codes(codes, names, f"{at}.onExitCodes")
    if len(conditions) > 20:
        errors.append(too_many(f"{at}.onPodConditions", len(conditions), 20))
    for i, pattern in enumerate(conditions):
        here = f"{at}.onPodConditions[{i}]"
        errors += rule(formats.qualified_name, pattern.get("type") or "", f"{here}.type")
        status = pattern.get("status") or ""
        if not status:
            errors.append(required(f"{here}.status", f"valid values: {_go_list(('False', 'True', 'Unknown'))}"))
        elif status not in ("False", "True", "Unknown"):
            errors.append(not_supported(f"{here}.status", status, ("False", "True", "Unknown")))
    if codes is not None and conditions:
        errors.append(FieldError("FieldValueInvalid", at, "Invalid value: specifying both OnExitCodes and OnPodConditions is not supported"))
    if codes is None and not conditions:
        errors.append(FieldError("FieldValueInvalid", at, "Invalid value: specifying one of OnExitCodes and OnPodConditions is required"))
    return errors


def _exit_codes(codes: Object, names: set[Any], at: str) -> Errors:
    errors: Errors = []
    operator, values = codes.get("operator") or "", codes.get("values")
    if not operator:
        errors.append(required(f"{at}.operator", f"valid values: {_go_list(('In', 'NotIn'))}"))
    elif operator not in ("In", "NotIn"):
        errors.append(not_supported(f"{at}.operator", operator, ("In", "NotIn")))
    container = codes.get("containerName")
    if container is not None and container not in names:
        errors.append(invalid_value(f"{at}.containerName", container, "must be one of the container or initContainer names in the pod template"))
    if not values:
        errors.append(invalid_value(f"{at}.values", values, "at least one value is required"))
    elif len(values) > 255:
        errors.append(too_many(f"{at}.values", len(values), 255))
    ordered, last, seen = True, 0, set()
    for i, value in enumerate(values or ()):
        if operator == "In" and value == 0:
            errors.append(invalid_value(f"{at}.values[{i}]", value, "must not be 0 for the In operator"))
        if value in seen:
            errors.append(duplicate(f"{at}.values[{i}]", value))
        seen.add(value)
        ordered = ordered and (i == 0 or last <= value)
        last = value
    if not ordered:
        errors.append(invalid_value(f"{at}.values", values, "must be ordered"))
    return errors


def _success_policy(spec: Object, at: str) -> Errors:
    errors: Errors = []
    if spec.get("completionMode") != "Indexed":
        return [invalid_value(at, internal.view("batch.v1.SuccessPolicy", spec["successPolicy"]), "requires indexed completion mode")]
    rules = spec["successPolicy"].get("rules") or []
    if not rules:
        return [required(f"{at}.rules", "at least one rules must be specified when the successPolicy is specified")]
    if len(rules) > 20:
        errors.append(too_many(f"{at}.rules", len(rules), 20))
    completions = spec.get("completions") or 0
    for i, entry in enumerate(rules):
        here = f"{at}.rules[{i}]"
        count, indexes = entry.get("succeededCount"), entry.get("succeededIndexes")
        if count is None and indexes is None:
            errors.append(required(here, "at least one of succeededCount or succeededIndexes must be specified"))
        total = 0
        if indexes is not None:
            total, bad = _indexes(indexes, completions)
            if bad:
                errors.append(invalid_value(f"{here}.succeededIndexes", indexes, f"error parsing succeededIndexes: {bad}"))
        if count is not None:
            errors += nonnegative(count, f"{here}.succeededCount")
            if count > completions:
                errors.append(
                    invalid_value(f"{here}.succeededCount", count, f"must be less than or equal to {completions} (the number of specified completions)")
                )
            if indexes is not None and total and count > total:
                errors.append(
                    invalid_value(
                        f"{here}.succeededCount",
                        count,
                        f"must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)",
                    )
                )
    return errors


def _indexes(text: str, completions: int) -> tuple[int, str]:
    """ "1,3-5" -> (4, ""), or (0, what is wrong)."""
    total, last = 0, -1
    if not text:
        return 0, ""
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2:
            return 0, f"the fragment \"{part}\" violates the requirement that an index interval can have at most two parts separated by '-'"
        try:
            numbers = [int(e) for e in ends]
        except ValueError:
            bad = next(e for e in ends if not e.isdigit())
            return 0, f'cannot convert string to integer for index: "{bad}"'
        for number in numbers:
            if number >= completions:
                return 0, f'too large index: "{number}"'
        if numbers[0] <= last:
            return 0, f"non-increasing order, previous: {last}, current: {numbers[0]}"
        if len(numbers) == 2 and numbers[1] <= numbers[0]:
            return 0, f"non-increasing order, previous: {numbers[0]}, current: {numbers[1]}"
        total += numbers[-1] - numbers[0] + 1
        last = numbers[-1]
    return total, ""


class CronJob(Kind):
    group = GROUP
    kind = "CronJob"
    status_metadata = METADATA

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("concurrencyPolicy"):
            spec["concurrencyPolicy"] = "Allow"
        if spec.get("suspend") is None:
            spec["suspend"] = False
        if spec.get("successfulJobsHistoryLimit") is None:
            spec["successfulJobsHistoryLimit"] = 3
        if spec.get("failedJobsHistoryLimit") is None:
            spec["failedJobsHistoryLimit"] = 1
        template = spec.setdefault("jobTemplate", {})
        job = template.setdefault("spec", {})
        for entry in (job.get("podFailurePolicy") or {}).get("rules") or ():
            for pattern in entry.get("onPodConditions") or ():
                if not pattern.get("status"):
                    pattern["status"] = "True"
        job_template_spec(job)

    def name_errors(self, name: str, prefix: bool = False) -> list[str]:
        errors = super().name_errors(name, prefix)
        if not prefix and len(name.encode()) > 52:
            errors.append("must be no more than 52 characters")
        return errors

    def validate_create(self, obj: Object) -> list[FieldError]:
        return self._spec(obj["spec"], None)

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self._spec(obj["spec"], old["spec"])

    def _spec(self, spec: Object, old: Object | None) -> Errors:
        errors: Errors = []
        schedule, zone = spec.get("schedule") or "", spec.get("timeZone")
        if not schedule:
            errors.append(required("spec.schedule"))
        else:
            errors += _schedule(schedule, zone, old, "spec.schedule")
        if spec.get("startingDeadlineSeconds") is not None:
            errors += nonnegative(spec["startingDeadlineSeconds"], "spec.startingDeadlineSeconds")
        if zone is not None and (old is None or old.get("timeZone") != zone):
            errors += _time_zone(zone, "spec.timeZone")
        policy = spec.get("concurrencyPolicy")
        if policy not in ("Allow", "Forbid", "Replace"):
            errors.append(not_supported("spec.concurrencyPolicy", policy, ("Allow", "Forbid", "Replace")) if policy else required("spec.concurrencyPolicy"))
        errors += self._job_template(spec.get("jobTemplate") or {})
        for key in ("successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
            if spec.get(key) is not None:
                errors += nonnegative(spec[key], f"spec.{key}")
        return errors

    def _job_template(self, template: Object) -> Errors:
        spec = template.get("spec") or {}
        errors = job_spec(spec, "spec.jobTemplate.spec")
        if spec.get("manualSelector"):
            errors.append(not_supported("spec.jobTemplate.spec.manualSelector", True, ("nil", "false")))
        if spec.get("selector") is not None:
            errors.append(invalid_value("spec.jobTemplate.spec.selector", spec["selector"], "`selector` will be auto-generated"))
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        out = []
        name = obj["metadata"].get("name") or ""
        if old is None and name and formats.label(name):
            out.append(_name_warning(name))
        schedule = obj["spec"].get("schedule") or ""
        if "TZ" in schedule and old is not None and "TZ" in (old["spec"].get("schedule") or ""):
            out.append(
                "CRON_TZ or TZ used in spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            )
        new = (obj["spec"].get("jobTemplate") or {}).get("spec") or {}
        before = ((old["spec"].get("jobTemplate") or {}).get("spec") or {}) if old else None
        return out + _job_warnings(new, before, "spec.jobTemplate.spec")


def _name_warning(name: str) -> str:
    listed = " ".join(formats.label(name))
    return f"metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{listed}]"


def _schedule(schedule: str, zone: str | None, old: Object | None, at: str) -> Errors:
    errors: Errors = []
    bad = cron.explain(schedule)
    if bad:
        errors.append(invalid_value(at, schedule, bad))
    if "TZ" in schedule:
        if zone is not None:
            errors.append(invalid_value(at, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
        elif old is None or "TZ" not in (old.get("schedule") or ""):
            errors.append(invalid_value(at, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
    return errors


@functools.lru_cache(maxsize=1024)
def _known_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _time_zone(zone: str, at: str) -> Errors:
    if not zone:
        return [invalid_value(at, zone, "timeZone must be nil or non-empty string")]
    if zone.lower() == "local":
        return [invalid_value(at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")]
    if not re.fullmatch(r"[A-Za-z.\-_]{1,14}[A-Za-z0-9.\-_/+]*", zone) or not _known_zone(zone):
        return [invalid_value(at, zone, f"unknown time zone {zone}")]
    return []


KINDS = [Job, CronJob]
