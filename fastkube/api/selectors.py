"""Label and field selectors: parsed once, then matched against the labels and fields of thousands of objects.

A `LabelSelector` and a `FieldSelector` are tuples of requirements in upstream's canonical order; `matches` is a plain loop over dict look-ups, which
is what a list or watch calls per object. Errors are what upstream's parsers say (ValueError here, 400 at the API's edge through `parse_labels`/`parse_fields`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastkube._ext.selectors import Match
from fastkube.api import formats
from fastkube.api.errors import FieldError, bad_request, forbidden_field, invalid_value, required

Labels = Mapping[str, str]

PARSED_MAX = 1024  # selector texts whose parsed form is remembered

IN, NOT_IN, EXISTS, NOT_EXISTS, GREATER, LESS = "in", "notin", "exists", "!", "gt", "lt"
_OBJECT_OPERATORS = {"In": IN, "NotIn": NOT_IN, "Exists": EXISTS, "DoesNotExist": NOT_EXISTS}


@dataclass(frozen=True, slots=True)
class Requirement:
    """`key operator values`; equality is `in` with one value."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()
    spelled: str = ""  # "=", "==", "!=" when it was written so

    def __str__(self) -> str:
        if self.operator == EXISTS:
            return self.key
        if self.operator == NOT_EXISTS:
            return "!" + self.key
        if self.spelled:
            return f"{self.key}{self.spelled}{next(iter(self.values))}"
        if self.operator in (GREATER, LESS):
            return f"{self.key}{'>' if self.operator == GREATER else '<'}{next(iter(self.values))}"
        return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"


class LabelSelector:
    """All requirements hold. `LabelSelector(())` selects everything, `NOTHING` nothing."""

    __slots__ = ("_match", "empty", "matches", "requirements")

    def __init__(self, requirements: Iterable[Requirement], nothing: bool = False) -> None:
        self.requirements = tuple(sorted(requirements, key=lambda r: r.key))
        self.empty = not self.requirements and not nothing
        self._match = Match([(r.key, r.operator, r.values) for r in self.requirements], nothing)
        self.matches: Callable[[Labels | None], bool] = self._match.matches

    def exact(self, key: str) -> str | None:
        """The one value that `key` must have, None when the selector does not fix it."""
        for r in self.requirements:
            if r.key == key and r.operator == IN and len(r.values) == 1:
                return next(iter(r.values))
        return None

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSelector) and str(self) == str(other) and self.empty == other.empty

    def __hash__(self) -> int:
        return hash(str(self))


EVERYTHING = LabelSelector(())
NOTHING = LabelSelector((), nothing=True)


class _Lexer:
    """Upstream's tokens of a label selector: identifiers and ( ) , ! = == != > < in notin."""

    SPECIAL = "=!(),><"

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def next(self, values: bool = False) -> tuple[str, str]:
        """-> (token, literal); `values`: words are values, `in` and `notin` too."""
        text = self.text
        while self.at < len(text) and text[self.at] in " \t\r\n":
            self.at += 1
        if self.at >= len(text):
            return "end", ""
        start = self.at
        if text[start] in self.SPECIAL:
            while self.at < len(text) and text[self.at] in self.SPECIAL and (self.at == start or text[start : self.at + 1] in ("==", "!=")):
                self.at += 1
            symbol = text[start : self.at]
            return symbol, symbol
        while self.at < len(text) and text[self.at] not in self.SPECIAL and text[self.at] not in " \t\r\n":
            self.at += 1
        word = text[start : self.at]
        if not values and word in (IN, NOT_IN):
            return word, word
        return "word", word

    def peek(self, values: bool = False) -> tuple[str, str]:
        at = self.at
        token = self.next(values)
        self.at = at
        return token


@functools.lru_cache(maxsize=PARSED_MAX)
def labels(text: str) -> LabelSelector:
    """`env in (a,b),x!=y,!z` -> its selector. Raises ValueError with upstream's words."""
    lexer = _Lexer(text)
    requirements: list[Requirement] = []
    token, literal = lexer.peek()
    if token == "end":
        return EVERYTHING
    while True:
        token, literal = lexer.peek()
        if token not in ("word", "!"):
            raise ValueError(f"found '{literal}', expected: !, identifier, or 'end of string'")
        try:
            requirements.append(_requirement(lexer))
        except ValueError as e:
            raise ValueError(f"unable to parse requirement: {e}") from None
        token, literal = lexer.next()
        if token == "end":
            return LabelSelector(requirements)
        if token != ",":
            raise ValueError(f"found '{literal}', expected: ',' or 'end of string'")
        token, literal = lexer.peek()
        if token not in ("word", "!"):
            raise ValueError(f"found '{literal}', expected: identifier after ','")


def _requirement(lexer: _Lexer) -> Requirement:
    token, literal = lexer.next()
    absent = token == "!"
    if absent:
        token, literal = lexer.next()
    if token != "word":
        raise ValueError(f"found '{literal}', expected: identifier")
    key = literal
    if bad := formats.qualified_name(key):
        raise ValueError(f'key: Invalid value: "{key}": {"; ".join(bad)}')
    token, literal = lexer.peek()
    if absent:
        return Requirement(key, NOT_EXISTS)
    if token in ("end", ","):
        return Requirement(key, EXISTS)
    token, literal = lexer.next()
    if token in (IN, NOT_IN):
        return Requirement(key, token, _checked(key, _value_set(lexer)))
    if token in ("=", "==", "!="):
        value = _value(lexer)
        return Requirement(key, NOT_IN if token == "!=" else IN, _checked(key, frozenset((value,))), token)
    if token in (">", "<"):
        value = _value(lexer)
        try:
            int(value)
        except ValueError:
            raise ValueError(f"values[0][{key}]: Invalid value: \"{value}\": for 'Gt', 'Lt' operators, the value must be an integer") from None
        return Requirement(key, GREATER if token == ">" else LESS, frozenset((value,)))
    raise ValueError(f"found '{literal}', expected: in, notin, =, ==, !=, gt, lt")


def _checked(key: str, values: frozenset[str]) -> frozenset[str]:
    for i, value in enumerate(sorted(values)):
        if bad := formats.label_value(value):
            raise ValueError(f'values[{i}][{key}]: Invalid value: "{value}": {"; ".join(bad)}')
    return values


def _value(lexer: _Lexer) -> str:
    token, literal = lexer.peek(values=True)
    if token in ("end", ","):
        return ""
    lexer.next(values=True)
    if token != "word":
        raise ValueError(f"found '{literal}', expected: identifier")
    return literal


def _value_set(lexer: _Lexer) -> frozenset[str]:
    token, literal = lexer.next(values=True)
    if token != "(":
        raise ValueError(f"found '{literal}' expected: '('")
    out: set[str] = set()
    token, literal = lexer.peek(values=True)
    if token not in ("word", ",", ")"):
        raise ValueError(f"found '{literal}', expected: ',', ')' or identifier")
    expect_value = True
    while True:
        token, literal = lexer.next(values=True)
        if token == "word" and expect_value:
            out.add(literal)
            expect_value = False
        elif token == "," and not expect_value:
            expect_value = True
        elif token == ",":
            out.add("")
        elif token == ")":
            if expect_value:
                out.add("")
            return frozenset(out)
        else:
            raise ValueError(f"found '{literal}', expected: ',' or ')'")


def from_object(selector: Mapping[str, Any] | None) -> LabelSelector:
    """A metav1.LabelSelector -> its selector; None selects nothing, {} everything. Raises ValueError on an unknown operator."""
    if selector is None:
        return NOTHING
    requirements = [Requirement(k, IN, frozenset((v,)), "=") for k, v in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or ():
        operator = _OBJECT_OPERATORS.get(expression.get("operator", ""))
        if operator is None:
            raise ValueError(f'"{expression.get("operator", "")}" is not a valid label selector operator')
        requirements.append(Requirement(expression.get("key", ""), operator, frozenset(expression.get("values") or ())))
    return LabelSelector(requirements) if requirements else EVERYTHING


def from_set(match: Mapping[str, str] | None) -> LabelSelector:
    """A plain map (Service and ReplicationController selectors); None or empty selects everything."""
    return LabelSelector([Requirement(k, IN, frozenset((v,)), "=") for k, v in (match or {}).items()])


def validate(selector: Mapping[str, Any] | None, field: str, check_values: bool = True) -> list[FieldError]:
    """The field errors of a metav1.LabelSelector."""
    from fastkube.api.meta import validate_labels

    if not selector:
        return []
    errors = validate_labels(selector.get("matchLabels"), f"{field}.matchLabels")
    for i, expression in enumerate(selector.get("matchExpressions") or ()):
        at = f"{field}.matchExpressions[{i}]"
        operator, values, key = expression.get("operator", ""), expression.get("values") or [], expression.get("key", "")
        if operator in ("In", "NotIn"):
            if not values:
                errors.append(required(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                errors.append(forbidden_field(f"{at}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
        else:
            errors.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
        errors += [invalid_value(f"{at}.key", key, m) for m in formats.qualified_name(key)]
        if check_values:
            errors += [invalid_value(f"{at}.values[{j}]", value, m) for j, value in enumerate(values) for m in formats.label_value(value)]
    return errors


class FieldSelector:
    """Equalities and inequalities of fields, all of which hold."""

    __slots__ = ("empty", "terms")

    def __init__(self, terms: Iterable[tuple[str, str, bool]]) -> None:
        self.terms = tuple(terms)  # (field, value, equal)
        self.empty = not self.terms

    def matches(self, fields: Mapping[str, str]) -> bool:
        """`fields`: the values of the fields this kind has; absent ones are "" ."""
        return all((fields.get(name, "") == value) is equal for name, value, equal in self.terms)

    def exact(self, name: str) -> str | None:
        return next((value for field, value, equal in self.terms if equal and field == name), None)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.terms]

    def __str__(self) -> str:
        return ",".join(f"{name}{'=' if equal else '!='}{_escape(value)}" for name, value, equal in self.terms)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")


@functools.lru_cache(maxsize=PARSED_MAX)
def fields(text: str) -> FieldSelector:
    """`spec.nodeName=n1,status.phase!=Running` -> its selector. Raises ValueError with upstream's words."""
    terms: list[tuple[str, str, bool]] = []
    for part in _split(text):
        if not part:
            continue
        for operator in ("!=", "==", "="):
            at = _operator_at(part, operator)
            if at >= 0:
                terms.append((part[:at], _unescape(part[at + len(operator) :]), operator != "!="))
                break
        else:
            raise ValueError(f"invalid selector: '{text}'; can't understand '{part}'")
    return FieldSelector(terms)


def _split(text: str) -> list[str]:
    parts, start, i = [], 0, 0
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] == ",":
            parts.append(text[start:i])
            start = i + 1
        i += 1
    return [*parts, text[start:]]


def _operator_at(part: str, operator: str) -> int:
    """Where the first operator of a term stands, if it is this one (longest first)."""
    for i in range(len(part)):
        if part[i] == "\\":
            continue
        for candidate in ("!=", "==", "="):
            if part.startswith(candidate, i):
                return i if candidate == operator else -1
    return -1


def _unescape(value: str) -> str:
    out: list[str] = []
    chars = iter(value)
    for c in chars:
        if c == "\\":
            c = next(chars, "")
            if c not in ("\\", ",", "="):
                raise ValueError(f"invalid field selector: invalid escape sequence: \\{c}")
        elif c in ",=":
            raise ValueError(f"invalid field selector: unescaped character in value: {c}")
        out.append(c)
    return "".join(out)


def parse_labels(text: str) -> LabelSelector:
    """`labels` for a request's labelSelector. Raises ApiError 400."""
    try:
        return labels(text)
    except ValueError as e:
        raise bad_request(str(e)) from None


def parse_fields(text: str, supported: Iterable[str] = ()) -> FieldSelector:
    """`fields` for a request's fieldSelector: a kind's `supported` fields besides metadata.name and metadata.namespace. Raises ApiError 400."""
    try:
        selector = fields(text)
    except ValueError as e:
        raise bad_request(str(e)) from None
    supported = frozenset(supported)
    for name in selector.names():
        if name not in supported and name not in ("metadata.name", "metadata.namespace"):
            known = "field label not supported: " + name
            raise bad_request(known if supported else f'"{name}" is not a known field selector: only "metadata.name", "metadata.namespace"')
    return selector
