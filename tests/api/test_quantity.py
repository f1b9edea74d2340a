"""Quantities against exact rational arithmetic, and upstream's canonical forms."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.api import quantity

_UNITS = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("0", "0"), ("100m", "100m"), ("1000m", "1"), ("0.5", "500m"), ("1.5Gi", "1536Mi"), ("1024Mi", "1Gi"), ("1Ki", "1Ki"), ("1000", "1k"), ("1e3", "1e3"), ("12E", "12E"),
        ("-5", "-5"), ("+5", "5"), ("0.1", "100m"), ("1.0", "1"), ("1e-3", "1e-3"), ("100e3", "100e3"), ("0.000001", "1u"), ("1.1", "1100m"), ("64Mi", "64Mi"), (".5", "500m"),
        ("5.", "5"), ("1500Mi", "1500Mi"), ("0Ki", "0"), ("1.5Ki", "1536"), ("0.1n", "1n"), ("4096", "4096"), ("1234567", "1234567"),
    ],
)  # fmt: skip
def test_canonical(text, canonical):
    assert quantity.canonical(text) == canonical


@pytest.mark.parametrize("text", ["", "x", "1x", "1KiB", "1 Gi", "Mi", "--1", "1.2.3", "1ee3", "½", "٣", "1e", "0x10"])
def test_refused(text):
    with pytest.raises(quantity.QuantityError):
        quantity.canonical(text)


amounts = st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 3), st.sampled_from(sorted(_UNITS)))


def _text(amount):
    digits, places, suffix = amount
    sign, digits = ("-", -digits) if digits < 0 else ("", digits)
    body = str(digits).rjust(places + 1, "0")
    return sign + (f"{body[:-places]}.{body[-places:]}" if places else body) + suffix


def _exact(amount):
    digits, places, suffix = amount
    return Fraction(digits, 10**places) * _UNITS[suffix]


def _rounded(value):
    """To whole nano units, away from zero."""
    nano = abs(value) * 10**9
    return (-1 if value < 0 else 1) * -(-nano.numerator // nano.denominator)


@given(amounts)
def test_value_is_exact(amount):
    assert quantity.nanos(_text(amount)) == _rounded(_exact(amount))


@given(amounts)
def test_canonical_keeps_the_value_and_settles(amount):
    canonical = quantity.canonical(_text(amount))
    assert quantity.nanos(canonical) == quantity.nanos(_text(amount))
    assert quantity.canonical(canonical) == canonical


@given(amounts, amounts)
def test_arithmetic(a, b):
    x, y = _text(a), _text(b)
    assert quantity.nanos(quantity.add(x, y)) == quantity.nanos(x) + quantity.nanos(y)
    assert quantity.nanos(quantity.subtract(x, y)) == quantity.nanos(x) - quantity.nanos(y)
    assert quantity.compare(x, y) == (quantity.nanos(x) > quantity.nanos(y)) - (quantity.nanos(x) < quantity.nanos(y))


def test_counting():
    assert quantity.milli("100m") == 100
    assert quantity.milli("2") == 2000
    assert quantity.milli("1n") == 1
    assert quantity.value("1Gi") == 2**30
    assert quantity.value("1500m") == 2
    assert quantity.value(5) == 5
