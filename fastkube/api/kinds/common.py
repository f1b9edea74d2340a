"""Checks that many kinds share. Each takes a value and its field path and returns field errors, upstream's texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastkube.api import formats, quantity
from fastkube.api.errors import FieldError, duplicate, invalid_value, not_supported, required
from fastkube.api.meta import validate_labels
from fastkube.api.selectors import validate as label_selector

__all__ = ["duplicate_keys", "enum", "immutable", "label_selector", "nonnegative", "positive_quantity", "rule", "stable_json", "validate_labels"]

Object = dict[str, Any]
Errors = list[FieldError]

NEGATIVE = "must be greater than or equal to 0"
NOT_POSITIVE = "must be greater than zero"
NOT_INTEGER = "must be an integer"
IMMUTABLE = "field is immutable"
INT32_MAX = 2**31 - 1


def nonnegative(value: int | None, field: str) -> Errors:
    return [invalid_value(field, value, NEGATIVE)] if value is not None and value < 0 else []


def positive(value: int | None, field: str) -> Errors:
    return [invalid_value(field, value, NOT_POSITIVE)] if value is not None and value <= 0 else []


def nonnegative_quantity(value: str, field: str) -> Errors:
    return [invalid_value(field, value, NEGATIVE)] if value.startswith("-") else []


def positive_quantity(value: str, field: str) -> Errors:
    return [invalid_value(field, value, NOT_POSITIVE)] if quantity.nanos(value) <= 0 else []


def rule(check: Callable[[str], Sequence[str]], value: str, field: str) -> Errors:
    """The messages of a `formats` rule as field errors."""
    return [invalid_value(field, value, message) for message in check(value)]


def enum(value: str | None, field: str, supported: Sequence[str], need: bool = True) -> Errors:
    """One of `supported`; an absent value is an error of its own when it is needed."""
    if not value:
        return [required(field)] if need else []
    return [] if value in supported else [not_supported(field, value, supported)]


def immutable(new: Any, old: Any, field: str, text: str = IMMUTABLE) -> Errors:
    return [] if (new or None) == (old or None) else [invalid_value(field, new, text)]


def duplicate_keys(items: Iterable[Any], field: str) -> Errors:
    """Elements that stood before in a list that is a set."""
    errors: Errors = []
    seen: set[Any] = set()
    for i, item in enumerate(items):
        if item in seen:
            errors.append(duplicate(f"{field}[{i}]", item))
        seen.add(item)
    return errors


def is_percent(value: Any) -> bool:
    return isinstance(value, str) and not formats.percent(value)


def percent_value(value: Any) -> int | None:
    """50 for "50%"; None for anything that is no percentage."""
    return int(value[:-1]) if is_percent(value) else None


def positive_int_or_percent(value: Any, field: str) -> Errors:
    """A non-negative integer or a percentage."""
    if isinstance(value, str):
        return [invalid_value(field, value, m) for m in formats.percent(value)]
    return nonnegative(value or 0, field)


def not_more_than_100_percent(value: Any, field: str) -> Errors:
    percentage = percent_value(value)
    return [invalid_value(field, value, "must not be greater than 100%")] if percentage is not None and percentage > 100 else []


def is_zero(value: Any) -> bool:
    return value in (0, "0%", None, "")


def stable_json(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def native_resource(name: str) -> bool:
    """Whether a resource name is one of Kubernetes' own (no prefix, or one of kubernetes.io)."""
    return "/" not in name or "kubernetes.io/" in name


def extended_resource(name: str) -> bool:
    return not native_resource(name) and not name.startswith("requests.") and not formats.qualified_name("requests." + name)


def integer_resource(name: str) -> bool:
    """Whether amounts of a resource are whole numbers."""
    return extended_resource(name)


def resource_quantity(name: str, value: str, field: str) -> Errors:
    """An amount of a resource: not negative, whole where it must be."""
    errors = nonnegative_quantity(value, field)
    if integer_resource(name) and quantity.nanos(value) % quantity.NANO:
        errors.append(invalid_value(field, value, NOT_INTEGER))
    return errors
