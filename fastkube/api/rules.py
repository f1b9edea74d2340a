"""x-kubernetes-validations: CEL rules of custom schemas.

Rules are compiled when the definition is, each against the value at its place (`self`, and `oldSelf` for transition rules, which only run on updates where
the place existed before). Integers and numbers, strings, lists and maps are CEL's own; a field whose name is a reserved word or no identifier
is written escaped in rules (`__namespace__`, `a__dash__b`), as upstream does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastkube.api.errors import FieldError, duplicate, forbidden_field, invalid_value, required

Schema = dict[str, Any]
MESSAGE_BYTES_MAX = 5 * 1024
CHECKS_MAX = 100_000  # evaluations for one object: the bound on what a rule over large lists may cost

_RESERVED = frozenset(
    ["true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while"]
)  # fmt: skip
_OLD_SELF = re.compile(r"\boldSelf\b")
_UNKNOWN_FIELD = re.compile(r"self\.([A-Za-z_][A-Za-z0-9_]*)")
_NO_KEY = re.compile(r'.*NOT_FOUND: Key not found in map : "([^"]*)".*', re.DOTALL)
_TRAVERSAL = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\['([^']+)'\]|\[\"([^\"]+)\"\]")

_env: Any = None


def env() -> Any:
    """The CEL environment that all rules share. CEL is loaded with the first rule: it takes 20 MB, and most clusters have none."""
    global _env
    if _env is None:
        from cel_expr_python import cel
        from cel_expr_python.ext import ext_bindings, ext_encoders, ext_math, ext_optional, ext_strings

        from fastkube.api.rulelib import FUNCTIONS

        extensions = [
            ext_bindings.ExtBindings(),
            ext_strings.ExtStrings(),
            ext_math.ExtMath(),
            ext_encoders.ExtEncoders(),
            ext_optional.ExtOptional(),
            cel.CelExtension("kubernetes", FUNCTIONS),
        ]
        _env = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}, extensions=extensions)
    return _env


class CompileError(ValueError):
    """The expression is no CEL; the text says where."""


def compile_rule(text: str) -> Any:
    try:
        return env().compile(text)
    except Exception as e:  # the binding raises RuntimeError and ValueError alike
        raise CompileError(str(e)) from None


def problem(text: str, schema: Schema, wanted: str = "bool") -> str:
    """Why `text` is no rule on values of `schema`, in CEL's words; "" when it is one."""
    try:
        program = compile_rule(text)
    except CompileError as e:
        return str(e).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")
    if program.return_type().name().lower() not in (wanted, "dyn"):
        return f"must evaluate to a {wanted}"
    if (m := _UNKNOWN_FIELD.match(text.strip())) and schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        known = {escaped(p) for p in schema.get("properties") or ()} | {"metadata", "apiVersion", "kind"}
        if not schema.get("additionalProperties") and m[1] not in known:
            return f"ERROR: <input>:1:{m.start(1)}: undefined field '{m[1]}'\n | {text}\n | {'.' * (m.start(1) - 1)}^"
    return ""


def escaped(name: str) -> str | None:
    """A property's name as rules write it; None when rules cannot reach it."""
    if name in _RESERVED:
        return f"__{name}__"
    out = name.replace("__", "__underscores__").replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
    return out if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", out) else None


def seen(value: Any, schema: Schema) -> Any:
    """A value as rules see it: properties under their escaped names, nothing that the schema does not know, no nulls."""
    if isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        out = {}
        for name, item in value.items():
            inner = properties.get(name)
            if inner is not None:
                known = escaped(name)
                if known is not None and (item is not None or inner.get("nullable")):
                    out[known] = seen(item, inner)
            elif isinstance(additional, dict):
                out[name] = seen(item, additional)
            elif schema.get("x-kubernetes-preserve-unknown-fields"):
                out[name] = item
        return out
    if isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        return [seen(item, items) for item in value]
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


@dataclass(slots=True)
class Rule:
    text: str
    program: Any
    transition: bool
    message: str
    expression: Any  # of messageExpression, None
    reason: str
    field: str
    optional_old: bool

    @classmethod
    def of(cls, raw: Schema) -> Rule:
        text = raw.get("rule", "")
        expression = compile_rule(raw["messageExpression"]) if raw.get("messageExpression") else None
        reason = raw.get("reason") or "FieldValueInvalid"
        optional = bool(raw.get("optionalOldSelf"))
        return cls(text, compile_rule(text), bool(_OLD_SELF.search(text)), raw.get("message", ""), expression, reason, raw.get("fieldPath", ""), optional)

    def error(self, path: str, type_: str, data: Schema) -> FieldError:
        """What the rule's failure says of the place at `path`."""
        message = self.message.strip()
        if self.expression is not None:
            try:
                said = self.expression.eval(data=data).plain_value()
            except Exception:
                said = None
            if isinstance(said, str) and said.strip() and "\n" not in said and len(said.encode()) <= MESSAGE_BYTES_MAX:
                message = said
        message = message or f"failed rule: {' '.join(self.text.split())}"
        at = path + "".join("." + (m[1] or m[2] or m[3]) for m in _TRAVERSAL.finditer(self.field))
        at = at.lstrip(".") or "<nil>"
        if self.reason == "FieldValueRequired":
            return required(at, message)
        if self.reason == "FieldValueForbidden":
            return forbidden_field(at, message)
        return duplicate(at, type_) if self.reason == "FieldValueDuplicate" else invalid_value(at, type_, message)


class Place:
    """The rules of a schema and of what lies below it; None of a place without any."""

    __slots__ = ("additional", "items", "keys", "properties", "rules", "schema")

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rules = [Rule.of(r) for r in schema.get("x-kubernetes-validations") or ()]
        self.properties = {name: place for name, inner in (schema.get("properties") or {}).items() if (place := of(inner))}
        self.additional = of(schema["additionalProperties"]) if isinstance(schema.get("additionalProperties"), dict) else None
        self.items = of(schema["items"]) if isinstance(schema.get("items"), dict) else None
        self.keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())


def of(schema: Schema) -> Place | None:
    place = Place(schema)
    return place if place.rules or place.properties or place.additional or place.items else None


class Rules:
    """All rules of a version's schema. Raises CompileError."""

    def __init__(self, schema: Schema) -> None:
        self._root = of(schema)

    @property
    def empty(self) -> bool:
        return self._root is None

    def check(self, obj: Any, old: Any | None) -> list[FieldError]:
        """The errors of the rules that `obj` breaks; `old` None: a creation, transition rules do not run."""
        errors: list[FieldError] = []
        left = CHECKS_MAX
        for place, value, before, had, path in _walk(self._root, obj, old, old is not None, ""):
            data: Schema | None = None
            for rule in place.rules:
                if rule.transition and not had and not rule.optional_old:
                    continue
                left -= 1
                if left < 0:
                    errors.append(
                        forbidden_field(path or "<nil>", "validation failed due to running out of cost budget, no further validation rules will be run")
                    )
                    return errors
                if data is None:
                    data = {"self": _with_envelope(seen(value, place.schema), value, path)}
                    if had:
                        data["oldSelf"] = _with_envelope(seen(before, place.schema), before, path)
                if problem := _run(rule, path, place.schema.get("type", ""), data):
                    errors.append(problem)
        return errors


def _with_envelope(value: Any, original: Any, path: str) -> Any:
    """At the root, rules may also read apiVersion, kind and the object's names."""
    if path or not isinstance(value, dict):
        return value
    meta = original.get("metadata") or {}
    named = {k: meta[k] for k in ("name", "generateName") if k in meta}
    return {**value, **{k: original[k] for k in ("apiVersion", "kind") if k in original}, "metadata": named}


def _run(rule: Rule, path: str, type_: str, data: Schema) -> FieldError | None:
    try:
        held = rule.program.eval(data=data).plain_value()  # an evaluation's error comes as a value, a conversion's is raised
    except Exception as e:
        held = e
    if held is True:
        return None
    if held is False:
        return rule.error(path, type_, data)
    problem = _NO_KEY.sub(r"no such key: \1", str(held)).split("\n")[0]
    return invalid_value(path or "<nil>", type_, f"{problem} evaluating rule: {rule.message.strip() or rule.text.strip()}")


def _walk(place: Place | None, value: Any, old: Any, had: bool, path: str) -> Iterator[tuple[Place, Any, Any, bool, str]]:
    """Each place with rules that `value` has, with what stood there before where that can be said (list items: only of list maps)."""
    if place is None or value is None:
        return
    if place.rules:
        yield place, value, old, had, path
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, inner in place.properties.items():
            if name in value:
                yield from _walk(inner, value[name], before.get(name), had and name in before, f"{path}.{name}" if path else name)
        if place.additional is not None:
            for name, item in value.items():
                if name not in (place.schema.get("properties") or {}):
                    yield from _walk(place.additional, item, before.get(name), had and name in before, f"{path}[{name}]")
    elif isinstance(value, list) and place.items is not None:
        keyed = {}
        if had and isinstance(old, list) and place.keys:
            keyed = {tuple(i.get(k) for k in place.keys): i for i in old if isinstance(i, dict)}
        for i, item in enumerate(value):
            identity = tuple(item.get(k) for k in place.keys) if isinstance(item, dict) else ()
            yield from _walk(place.items, item, keyed.get(identity), identity in keyed, f"{path}[{i}]")
