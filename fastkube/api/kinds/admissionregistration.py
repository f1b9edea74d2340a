"""admissionregistration.k8s.io/v1: webhook configurations, validating and mutating admission policies and their bindings."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastkube.api import formats
from fastkube.api.errors import FieldError, duplicate, invalid_value, not_supported, required
from fastkube.api.kinds.base import Kind, Object
from fastkube.api.kinds.cel import expression_errors, identifier
from fastkube.api.kinds.common import Errors, label_selector, rule

GROUP = "admissionregistration.k8s.io"
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
_SCOPES = ("*", "Cluster", "Namespaced")
_REVIEW_VERSIONS = ("v1", "v1beta1")
_FAILURE, _MATCH, _SIDE_EFFECTS = ("Fail", "Ignore"), ("Equivalent", "Exact"), ("None", "NoneOnDryRun")
_CONDITIONS_MAX = 64
_URL_FORM = "; desired format: https://host[/path]"


def _default_rules(rules: list[Object] | None) -> None:
    for entry in rules or ():
        if entry.get("scope") is None:
            entry["scope"] = "*"


# ---- webhooks


class _WebhookConfiguration(Kind):
    group = GROUP
    has_status = False
    unconditional_update = False
    mutating = False

    def default(self, obj: Object) -> None:
        for hook in obj.get("webhooks") or ():
            if hook.get("failurePolicy") is None:
                hook["failurePolicy"] = "Fail"
            if hook.get("matchPolicy") is None:
                hook["matchPolicy"] = "Equivalent"
            for key in ("namespaceSelector", "objectSelector"):
                if hook.get(key) is None:
                    hook[key] = {}
            if hook.get("timeoutSeconds") is None:
                hook["timeoutSeconds"] = 10
            if self.mutating and hook.get("reinvocationPolicy") is None:
                hook["reinvocationPolicy"] = "Never"
            service = (hook.get("clientConfig") or {}).get("service")
            if service is not None and service.get("port") is None:
                service["port"] = 443
            _default_rules(hook.get("rules"))

    def validate_create(self, obj: Object) -> list[FieldError]:
        errors: Errors = []
        names: set[str] = set()
        for i, hook in enumerate(obj.get("webhooks") or ()):
            at, name = f"webhooks[{i}]", hook.get("name") or ""
            errors += self._hook(hook, at) + _review_versions(hook.get("admissionReviewVersions") or [], f"{at}.admissionReviewVersions")
            if name:
                if name in names:
                    errors.append(duplicate(f"{at}.name", name))
                names.add(name)
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)

    def _hook(self, hook: Object, at: str) -> Errors:
        name = hook.get("name") or ""
        errors = [required(f"{at}.name")] if not name else rule(formats.fully_qualified_name, name, f"{at}.name")
        for i, entry in enumerate(hook.get("rules") or ()):
            errors += rule_with_operations(entry, f"{at}.rules[{i}]")
        for key, options in (("failurePolicy", _FAILURE), ("matchPolicy", _MATCH)):
            if hook.get(key) is not None and hook[key] not in options:
                errors.append(not_supported(f"{at}.{key}", hook[key], options))
        effects, seconds = hook.get("sideEffects"), hook.get("timeoutSeconds")
        if effects is None:
            errors.append(required(f"{at}.sideEffects", "must specify one of None, NoneOnDryRun"))
        elif effects not in _SIDE_EFFECTS:
            errors.append(not_supported(f"{at}.sideEffects", effects, _SIDE_EFFECTS))
        if seconds is not None and not 1 <= seconds <= 30:
            errors.append(invalid_value(f"{at}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds"))
        for key in ("namespaceSelector", "objectSelector"):
            errors += label_selector(hook.get(key), f"{at}.{key}")
        if self.mutating and hook.get("reinvocationPolicy") not in (None, "IfNeeded", "Never"):
            errors.append(not_supported(f"{at}.reinvocationPolicy", hook["reinvocationPolicy"], ("IfNeeded", "Never")))
        client = hook.get("clientConfig") or {}
        url, service = client.get("url"), client.get("service")
        if (url is None) == (service is None):
            errors.append(required(f"{at}.clientConfig", "exactly one of url or service is required"))
        elif url is not None:
            errors += webhook_url(url, f"{at}.clientConfig.url")
        elif service is not None:
            errors += webhook_service(service, f"{at}.clientConfig.service")
        return errors + match_conditions(hook.get("matchConditions") or [], f"{at}.matchConditions")


class ValidatingWebhookConfiguration(_WebhookConfiguration):
    kind = "ValidatingWebhookConfiguration"


class MutatingWebhookConfiguration(_WebhookConfiguration):
    kind = "MutatingWebhookConfiguration"
    mutating = True


def _review_versions(versions: list[str], at: str) -> Errors:
    if not versions:
        return [required(at, f"must specify one of {', '.join(_REVIEW_VERSIONS)}")]
    errors: Errors = []
    for i, version in enumerate(versions):
        if version in versions[:i]:
            errors.append(invalid_value(f"{at}[{i}]", version, "duplicate version"))
        else:
            errors += rule(formats.label_1035, version, f"{at}[{i}]")
    if not set(versions) & set(_REVIEW_VERSIONS):
        errors.append(invalid_value(at, versions, f"must include at least one of {', '.join(_REVIEW_VERSIONS)}"))
    return errors


def webhook_url(url: str, at: str) -> Errors:
    try:
        parts = urlsplit(url)
    except ValueError as e:
        return [required(at, f"url must be a valid URL: {e}{_URL_FORM}")]
    errors: Errors = []
    scheme = parts.scheme if "://" in url or url.startswith(parts.scheme + ":") else ""
    if scheme != "https":
        errors.append(invalid_value(at, scheme, "'https' is the only allowed URL scheme" + _URL_FORM))
    if not parts.netloc:
        errors.append(invalid_value(at, "", "host must be specified" + _URL_FORM))
    if "@" in parts.netloc:
        errors.append(invalid_value(at, parts.netloc.rpartition("@")[0], "user information is not permitted in the URL"))
    if parts.fragment:
        errors.append(invalid_value(at, parts.fragment, "fragments are not permitted in the URL"))
    if parts.query:
        errors.append(invalid_value(at, parts.query, "query parameters are not permitted in the URL"))
    return errors


def webhook_service(service: Object, at: str) -> Errors:
    errors: Errors = []
    # Upstream takes one for the other: what is missing is told of the other field.
    if not service.get("name"):
        errors.append(required(f"{at}.namespace"))
    if not service.get("namespace"):
        errors.append(required(f"{at}.name"))
    if bad := formats.port_number(service.get("port", 0)):
        errors.append(invalid_value(f"{at}.port", service.get("port", 0), "port is not valid: " + ", ".join(bad)))
    path = service.get("path")
    if path in (None, "", "/"):
        return errors
    if path == "//":
        return [*errors, invalid_value(f"{at}.path", path, "segment[0] may not be empty")]
    if not path.startswith("/"):
        errors.append(invalid_value(f"{at}.path", path, "must start with a '/'"))
    for i, step in enumerate(path[1:].removesuffix("/").split("/")):
        if not step:
            errors.append(invalid_value(f"{at}.path", path, f"segment[{i}] may not be empty"))
        errors += [invalid_value(f"{at}.path", path, f"segment[{i}]: {m}") for m in (formats.subdomain(step) if step else ())]
    return errors


def rule_with_operations(entry: Object, at: str) -> Errors:
    errors: Errors = []
    operations = entry.get("operations") or []
    if not operations:
        errors.append(required(f"{at}.operations"))
    if len(operations) > 1 and "*" in operations:
        errors.append(invalid_value(f"{at}.operations", operations, "if '*' is present, must not specify other operations"))
    errors += [not_supported(f"{at}.operations[{i}]", o, _OPERATIONS) for i, o in enumerate(operations) if o not in _OPERATIONS]
    for key, what in (("apiGroups", "API groups"), ("apiVersions", "API versions")):
        values = entry.get(key) or []
        if not values:
            errors.append(required(f"{at}.{key}"))
        if len(values) > 1 and "*" in values:
            errors.append(invalid_value(f"{at}.{key}", values, f"if '*' is present, must not specify other {what}"))
        if key == "apiVersions":
            errors += [required(f"{at}.apiVersions[{i}]") for i, v in enumerate(values) if not v]
    errors += _resources(entry.get("resources") or [], f"{at}.resources")
    if entry.get("scope") is not None and entry["scope"] not in _SCOPES:
        errors.append(not_supported(f"{at}.scope", entry["scope"], _SCOPES))
    return errors


def _resources(resources: list[str], at: str) -> Errors:
    if not resources:
        return [required(at)]
    errors: Errors = []
    whole: set[str] = set()  # resources given with all of their subresources
    everywhere: set[str] = set()  # subresources given of all resources
    for i, resource in enumerate(resources):
        if not resource:
            errors.append(required(f"{at}[{i}]"))
            continue
        name, slash, sub = resource.partition("/")
        if name in whole:
            errors.append(invalid_value(f"{at}[{i}]", resource, f"if '{name}/*' is present, must not specify {resource}"))
        if sub in everywhere and slash:
            errors.append(invalid_value(f"{at}[{i}]", resource, f"if '*/{sub}' is present, must not specify {resource}"))
        if sub == "*":
            whole.add(name)
        if name == "*":
            everywhere.add(sub)
    if len(resources) > 1 and "*/*" in resources:
        errors.append(invalid_value(at, resources, "if '*/*' is present, must not specify other resources"))
    if "*" in resources and any("/" not in r for r in resources if r != "*"):
        errors.append(invalid_value(at, resources, "if '*' is present, must not specify other resources without subresources"))
    return errors


def match_conditions(conditions: list[Object], at: str) -> Errors:
    errors: Errors = []
    if len(conditions) > _CONDITIONS_MAX:
        from fastkube.api.errors import too_many

        return [too_many(at, len(conditions), _CONDITIONS_MAX)]
    names: set[str] = set()
    for i, condition in enumerate(conditions):
        here, name, text = f"{at}[{i}]", condition.get("name") or "", (condition.get("expression") or "").strip()
        if not text:
            errors.append(required(f"{here}.expression"))
        else:
            errors += expression_errors(condition["expression"], f"{here}.expression")
        if not name:
            errors.append(required(f"{here}.name"))
        else:
            errors += rule(formats.qualified_name, name, f"{here}.name")
            if name in names:
                errors.append(duplicate(f"{here}.name", name))
            names.add(name)
    return errors


# ---- policies


def _default_match(match: Object | None) -> None:
    if match is None:
        return
    if match.get("matchPolicy") is None:
        match["matchPolicy"] = "Equivalent"
    for key in ("namespaceSelector", "objectSelector"):
        if match.get(key) is None:
            match[key] = {}
    _default_rules(match.get("resourceRules"))
    _default_rules(match.get("excludeResourceRules"))


def _match_resources(match: Object, at: str) -> Errors:
    errors: Errors = []
    policy = match.get("matchPolicy")
    if policy is None:
        errors.append(required(f"{at}.matchPolicy"))
    elif policy not in _MATCH:
        errors.append(not_supported(f"{at}.matchPolicy", policy, _MATCH))
    for key in ("namespaceSelector", "objectSelector"):
        if match.get(key) is None:
            errors.append(required(f"{at}.{key}"))
        else:
            errors += label_selector(match[key], f"{at}.{key}")
    for key in ("resourceRules", "excludeResourceRules"):
        for i, entry in enumerate(match.get(key) or ()):
            here = f"{at}.{key}[{i}]"
            errors += rule_with_operations(entry, here)
            names: set[str] = set()
            for j, name in enumerate(entry.get("resourceNames") or ()):
                errors += rule(formats.path_segment, name, f"{here}.resourceNames[{j}]")
                if name in names:
                    errors.append(duplicate(f"{here}.resourceNames[{j}]", name))
                names.add(name)
    return errors


def _match_constraints(match: Object | None, at: str) -> Errors:
    if match is None:
        return [required(at)]
    errors = _match_resources(match, at)
    if not match.get("resourceRules"):
        errors.append(required(f"{at}.resourceRules"))
    return errors


def _param_kind(kind: Object | None, at: str) -> Errors:
    if kind is None:
        return []
    errors: Errors = []
    version, name = kind.get("apiVersion") or "", kind.get("kind") or ""
    if not version:
        errors.append(required(f"{at}.apiVersion"))
    elif version.count("/") > 1:
        errors.append(invalid_value(f"{at}.apiVersion", version, f"unexpected GroupVersion string: {version}"))
    else:
        group, _, number = version.rpartition("/")
        if group:
            errors += [invalid_value(f"{at}.apiVersion", group, ", ".join(bad)) for bad in [formats.subdomain(group)] if bad]
        errors += [invalid_value(f"{at}.apiVersion", number, ", ".join(bad)) for bad in [formats.label_1035(number)] if bad]
    if not name:
        errors.append(required(f"{at}.kind"))
    else:
        errors += [
            invalid_value(f"{at}.kind", name, "may have mixed case, but should otherwise match: " + ",".join(bad))
            for bad in [formats.label_1035(name.lower())]
            if bad
        ]
    return errors


def _variables(variables: list[Object], at: str) -> Errors:
    errors: Errors = []
    names: set[str] = set()
    for i, variable in enumerate(variables):
        here, name, text = f"{at}[{i}]", variable.get("name") or "", variable.get("expression") or ""
        if not name:
            errors.append(required(f"{here}.name", "name is not specified"))
        elif not identifier(name):
            errors.append(invalid_value(f"{here}.name", name, "must be a valid CEL identifier"))
        if name and name in names:
            errors.append(duplicate(f"{here}.name", name))
        names.add(name)
        errors += [required(f"{here}.expression", "expression is not specified")] if not text.strip() else expression_errors(text, f"{here}.expression")
    return errors


_REASONS = ("Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized")


class ValidatingAdmissionPolicy(Kind):
    group = GROUP
    kind = "ValidatingAdmissionPolicy"
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if spec.get("failurePolicy") is None:
            spec["failurePolicy"] = "Fail"
        _default_match(spec.get("matchConstraints"))

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors: Errors = []
        policy = spec.get("failurePolicy")
        if policy is None:
            errors.append(required("spec.failurePolicy"))
        elif policy not in _FAILURE:
            errors.append(not_supported("spec.failurePolicy", policy, _FAILURE))
        errors += _param_kind(spec.get("paramKind"), "spec.paramKind")
        errors += _match_constraints(spec.get("matchConstraints"), "spec.matchConstraints")
        errors += _variables(spec.get("variables") or [], "spec.variables")
        validations, annotations = spec.get("validations") or [], spec.get("auditAnnotations") or []
        if not validations and not annotations:
            text = "validations or auditAnnotations must contain at least one item"
            errors += [required("spec.validations", text), required("spec.auditAnnotations", text)]
        for i, validation in enumerate(validations):
            errors += self._validation(validation, f"spec.validations[{i}]")
        errors += self._annotations(obj, annotations)
        return errors + match_conditions(spec.get("matchConditions") or [], "spec.matchConditions")

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)

    def _validation(self, validation: Object, at: str) -> Errors:
        errors: Errors = []
        text, message, reason = (validation.get("expression") or "").strip(), validation.get("message") or "", validation.get("reason")
        if not text:
            errors.append(required(f"{at}.expression", "expression is not specified"))
        else:
            errors += expression_errors(validation["expression"], f"{at}.expression")
        shown = validation.get("messageExpression") or ""
        if shown and not shown.strip():
            errors.append(invalid_value(f"{at}.messageExpression", shown, "must be non-empty if specified"))
        elif shown:
            errors += expression_errors(shown, f"{at}.messageExpression", "string")
        if message and not message.strip():
            errors.append(invalid_value(f"{at}.message", message, "message must be non-empty if specified"))
        elif "\n" in message.strip():
            errors.append(invalid_value(f"{at}.message", message, "message must not contain line breaks"))
        elif "\n" in text and not message:
            errors.append(required(f"{at}.message", "message must be specified if expression contains line breaks"))
        if reason is not None and reason not in _REASONS:
            errors.append(not_supported(f"{at}.reason", reason, _REASONS[:3]))
        return errors

    def _annotations(self, obj: Object, annotations: list[Object]) -> Errors:
        errors: Errors = []
        keys: set[str] = set()
        for i, annotation in enumerate(annotations):
            at, key, text = f"spec.auditAnnotations[{i}]", annotation.get("key") or "", annotation.get("valueExpression") or ""
            if not text.strip():
                errors.append(required(f"{at}.valueExpression", "valueExpression is not specified"))
            elif len(text.encode()) > 5 * 1024:
                errors.append(required(f"{at}.valueExpression", f"must not exceed {5 * 1024} bytes in length"))
            else:
                errors += expression_errors(text, f"{at}.valueExpression", "string")
            if not key:
                errors.append(required(f"{at}.key"))
            else:
                errors += rule(formats.qualified_name, f"{obj['metadata'].get('name', '')}/{key}", f"{at}.key")
                if key in keys:
                    errors.append(duplicate(f"{at}.key", key))
                keys.add(key)
        return errors


class ValidatingAdmissionPolicyBinding(Kind):
    group = GROUP
    kind = "ValidatingAdmissionPolicyBinding"
    has_status = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        _default_match(spec.get("matchResources"))

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors = _binding(spec)
        actions = spec.get("validationActions") or []
        if not actions:
            errors.append(required("spec.validationActions", "at least one validation action is required"))
        for i, action in enumerate(actions):
            if action not in ("Audit", "Deny", "Warn"):
                errors.append(not_supported("spec.validationActions" + f"[{i}]", action, ("Audit", "Deny", "Warn")))
            if action in actions[:i]:
                errors.append(duplicate(f"spec.validationActions[{i}]", action))
        if {"Deny", "Warn"} <= set(actions):
            errors.append(
                invalid_value(
                    "spec.validationActions",
                    actions,
                    "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
                )
            )
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


def _binding(spec: Object) -> Errors:
    name = spec.get("policyName") or ""
    errors = [required("spec.policyName")] if not name else rule(formats.subdomain, name, "spec.policyName")
    errors += _param_ref(spec.get("paramRef"), "spec.paramRef")
    if spec.get("matchResources") is not None:
        errors += _match_resources(spec["matchResources"], "spec.matchResources")
    return errors


def _param_ref(ref: Object | None, at: str) -> Errors:
    if ref is None:
        return []
    errors: Errors = []
    name, selector, action = ref.get("name") or "", ref.get("selector"), ref.get("parameterNotFoundAction")
    if name:
        errors += rule(formats.path_segment, name, f"{at}.name")
        if selector is not None:
            from fastkube.api.errors import forbidden_field

            errors.append(forbidden_field(f"{at}.name", "name and selector are mutually exclusive"))
    if selector is not None:
        errors += label_selector(selector, f"{at}.selector")
    elif not name:
        errors.append(required(at, "one of name or selector must be specified"))
    if action is None:
        errors.append(required(f"{at}.parameterNotFoundAction"))
    elif action not in ("Allow", "Deny"):
        errors.append(not_supported(f"{at}.parameterNotFoundAction", action, ("Deny", "Allow")))
    return errors


class MutatingAdmissionPolicy(Kind):
    group = GROUP
    kind = "MutatingAdmissionPolicy"
    has_status = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if spec.get("failurePolicy") is None:
            spec["failurePolicy"] = "Fail"
        _default_match(spec.get("matchConstraints"))

    def validate_create(self, obj: Object) -> list[FieldError]:
        spec = obj["spec"]
        errors: Errors = []
        policy = spec.get("failurePolicy")
        if policy is None:
            errors.append(required("spec.failurePolicy"))
        elif policy not in _FAILURE:
            errors.append(not_supported("spec.failurePolicy", policy, _FAILURE))
        errors += _param_kind(spec.get("paramKind"), "spec.paramKind") + _match_constraints(spec.get("matchConstraints"), "spec.matchConstraints")
        errors += match_conditions(spec.get("matchConditions") or [], "spec.matchConditions") + _variables(spec.get("variables") or [], "spec.variables")
        mutations = spec.get("mutations") or []
        if not mutations:
            errors.append(required("spec.mutations", "mutations must contain at least one item"))
        for i, mutation in enumerate(mutations):
            errors += _mutation(mutation, f"spec.mutations[{i}]")
        again = spec.get("reinvocationPolicy")
        if not again:
            errors.append(required("spec.reinvocationPolicy"))
        elif again not in ("IfNeeded", "Never"):
            errors.append(not_supported("spec.reinvocationPolicy", again, ("IfNeeded", "Never")))
        return errors

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return self.validate_create(obj)


_PATCHES = {"ApplyConfiguration": "applyConfiguration", "JSONPatch": "jsonPatch"}


def _mutation(mutation: Object, at: str) -> Errors:
    kind = mutation.get("patchType") or ""
    if not kind:
        return [required(f"{at}.patchType", "patchType must be specified")]
    own = _PATCHES.get(kind)
    if own is None:
        return [not_supported(f"{at}.patchType", kind, tuple(_PATCHES))]
    errors: Errors = []
    patch = mutation.get(own)
    for other in _PATCHES.values():
        if other != own and mutation.get(other) is not None:
            errors.append(invalid_value(f"{at}.{other}", "{" + other + "}", f"{other} must not be specified when patchType is {kind}"))
    if patch is None:
        return [*errors, required(f"{at}.{own}", f"{own} must be specified when patchType is {kind}")]
    text = patch.get("expression") or ""
    return errors + (
        [required(f"{at}.{own}.expression", "expression is not specified")] if not text.strip() else expression_errors(text, f"{at}.{own}.expression", "")
    )


class MutatingAdmissionPolicyBinding(Kind):
    group = GROUP
    kind = "MutatingAdmissionPolicyBinding"
    has_status = False
    unconditional_update = False

    def default(self, obj: Object) -> None:
        _default_match(obj.setdefault("spec", {}).get("matchResources"))

    def validate_create(self, obj: Object) -> list[FieldError]:
        return _binding(obj["spec"])

    def validate_update(self, obj: Object, old: Object) -> list[FieldError]:
        return _binding(obj["spec"])


KINDS: list[Any] = [
    ValidatingWebhookConfiguration, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
]  # fmt: skip
