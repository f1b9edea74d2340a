"""The only source of chance: uids, name suffixes, jitter. `seed` makes a whole run repeatable (the simulator, tests).

Keys, tokens and nonces are secrets, not chance: they come from `secrets` and `cryptography` and are never seeded.
"""

from __future__ import annotations

import random
import uuid

# No vowels and no look-alikes, so that a suffix never spells a word (k8s.io/apimachinery/pkg/util/rand).
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"

_random = random.Random()


def seed(value: int | None) -> None:
    """Restart the source from `value`; None takes a fresh seed from the operating system."""
    _random.seed(value)


def uid() -> str:
    """A random (version 4) UUID."""
    return str(uuid.UUID(int=_random.getrandbits(128), version=4))


def suffix(length: int = 5) -> str:
    """What generateName appends."""
    return "".join(_random.choices(SUFFIX_ALPHABET, k=length))


def jitter(seconds: float, factor: float = 0.1) -> float:
    """`seconds` lengthened by up to `factor` of itself, so that many loops do not beat as one."""
    return seconds * (1 + factor * _random.random())


def generator() -> random.Random:
    """The source itself, for shuffles and choices."""
    return _random
