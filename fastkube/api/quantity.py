"""Quantities (k8s.io/apimachinery pkg/api/resource): exact decimal numbers with a suffix, in upstream's canonical form.

Arithmetic is on exact integers of nano units, so nothing is ever lost to floating point; a finer value is rounded away from zero, as upstream does.
`milli` and `value` are what schedulers and node agents count with (CPU in thousandths, memory in bytes), rounded up as upstream rounds.
"""

from __future__ import annotations

import functools
import re

_FORMAT = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
_NUMERIC = "unable to parse numeric part of quantity"
_SUFFIX = "unable to parse quantity's suffix"
NANO = 10**9
BINARY_MAX = (2**63 - 1) * NANO  # upstream caps what is greater, where the suffix is binary
DIGITS_MAX = 1000  # of a quantity, and of what its exponent stands for: nobody has more

_PATTERN = re.compile(r"([+-]?)(\d*)(\.?)(\d*)([eEinumkKMGTP]*)([+-]?\d*)", re.ASCII)
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DECIMAL_SUFFIX = {v: k for k, v in _DECIMAL.items()}


class QuantityError(ValueError):
    """The text is no quantity; says why in upstream's words."""


@functools.lru_cache(maxsize=8192)
def parse(text: str) -> tuple[int, str]:
    """-> (value in nano units, format: "decimal", "binary" or "exponent"). Raises QuantityError."""
    if not text or len(text) > DIGITS_MAX:
        raise QuantityError(_FORMAT)
    m = _PATTERN.match(text)
    assert m is not None  # every part of the pattern may be empty
    sign, whole, _dot, fraction, letters, exponent_digits = m.groups()
    if m.end() != len(text):
        raise QuantityError(_FORMAT)
    suffix = letters + exponent_digits
    if suffix in _DECIMAL:
        base, exponent, form = 10, _DECIMAL[suffix], "decimal"
    elif suffix in _BINARY:
        base, exponent, form = 2, _BINARY[suffix], "binary"
    elif len(suffix) > 1 and suffix[0] in "eE" and re.fullmatch(r"[+-]?\d+", suffix[1:]):
        base, exponent, form = 10, int(suffix[1:]), "exponent"
        if exponent > DIGITS_MAX:
            raise QuantityError(_SUFFIX)
    else:
        raise QuantityError(_SUFFIX)
    if not whole and not fraction:
        raise QuantityError(_NUMERIC)
    digits = int((whole or "0") + fraction)
    scale = -len(fraction)
    if digits and exponent < -DIGITS_MAX:
        nano = 1
    else:
        numerator, denominator = digits * NANO, 10**-scale
        if base == 2:
            numerator <<= exponent
        elif exponent >= 0:
            numerator *= 10**exponent
        else:
            denominator *= 10**-exponent
        nano = -(-numerator // denominator)
        if base == 2:
            nano = min(nano, BINARY_MAX)
    if form == "binary" and nano and nano % NANO and nano < NANO:
        form = "decimal"  # a binary suffix cannot say less than one
    return (-nano if sign == "-" else nano), form


def text(nano: int, form: str = "decimal") -> str:
    """The canonical form of a value: no fraction, the greatest suffix that fits."""
    if nano == 0:
        return "0"
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    if form == "binary" and (nano < 1024 * NANO or nano % NANO):
        form = "decimal"
    if form == "binary":
        value, power = nano // NANO, 0
        while value % 1024 == 0 and power < 60:
            value, power = value // 1024, power + 10
        return f"{sign}{value}{next((s for s, p in _BINARY.items() if p == power), '')}"
    exponent = -9
    while nano % 1000 == 0 and (exponent < 18 or form == "exponent"):
        nano, exponent = nano // 1000, exponent + 3
    if form == "exponent":
        return f"{sign}{nano}" + (f"e{exponent}" if exponent else "")
    return f"{sign}{nano}{_DECIMAL_SUFFIX[exponent]}"


def canonical(quantity: str) -> str:
    """A quantity as upstream writes it: "1000m" -> "1", "0.5" -> "500m", "1024Mi" -> "1Gi". Raises QuantityError."""
    nano, form = parse(quantity.strip())
    return text(nano, form)


def nanos(quantity: str | int | float) -> int:
    """The exact value in nano units."""
    return parse(quantity if isinstance(quantity, str) else repr(quantity))[0]


def milli(quantity: str | int | float) -> int:
    """Thousandths, rounded up: what CPU is counted in."""
    return -(-nanos(quantity) // 10**6)


def value(quantity: str | int | float) -> int:
    """Whole units, rounded up: bytes of memory, counts."""
    return -(-nanos(quantity) // NANO)


def compare(a: str, b: str) -> int:
    """-1, 0 or 1."""
    x, y = nanos(a), nanos(b)
    return (x > y) - (x < y)


def add(a: str, b: str) -> str:
    """The sum, in the first one's format unless that is zero."""
    (x, form), (y, other) = parse(a), parse(b)
    return text(x + y, form if x else other)


def subtract(a: str, b: str) -> str:
    (x, form), (y, other) = parse(a), parse(b)
    return text(x - y, form if x else other)
