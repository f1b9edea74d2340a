"""The forms of names and values that many kinds share (k8s.io/apimachinery util/validation): each rule returns what is wrong, in upstream's words.

A rule takes the value and returns a list of messages, empty when the value is well formed. The frequent ones remember their answers.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Sequence

Rule = Callable[[str], Sequence[str]]

RULES_CACHED_MAX = 8192  # values whose verdict is remembered, for each rule

_QNAME = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + ")*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_WILDCARD = r"\*\." + _SUBDOMAIN
_C_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
_CONFIG_KEY = "[-._a-zA-Z0-9]+"
_HTTP_HEADER = "[-A-Za-z0-9]+"
_PERCENT = "[0-9]+%"
_RELAXED_ENV = "[ -<>-~]+"

_qname, _label, _subdomain, _label_1035, _wildcard, _c_identifier, _config_key, _http_header, _percent = (
    re.compile(p, re.ASCII).fullmatch for p in (_QNAME, _LABEL, _SUBDOMAIN, _LABEL_1035, _WILDCARD, _C_IDENTIFIER, _CONFIG_KEY, _HTTP_HEADER, _PERCENT)
)
_relaxed_env = re.compile(_RELAXED_ENV, re.ASCII).fullmatch
_label_value = re.compile("(" + _QNAME + ")?", re.ASCII).fullmatch


def regex_error(message: str, pattern: str, *examples: str) -> str:
    if not examples:
        return f"{message} (regex used for validation is '{pattern}')"
    return f"{message} (e.g. " + " or ".join(f"'{e}', " for e in examples) + f"regex used for validation is '{pattern}')"


def max_length(limit: int) -> str:
    return f"must be no more than {limit} bytes"


EMPTY = "must be non-empty"


def in_range(low: int, high: int) -> str:
    return f"must be between {low} and {high}, inclusive"


_QNAME_ERROR = regex_error(
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character", _QNAME, "MyName", "my.name", "123-abc"
)
_LABEL_VALUE_ERROR = regex_error(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    "(" + _QNAME + ")?",
    "MyValue",
    "my_value",
    "12345",
)
_LABEL_ERROR = regex_error(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
    _LABEL,
    "my-name",
    "123-abc",
)
_SUBDOMAIN_ERROR = regex_error(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    _SUBDOMAIN,
    "example.com",
)
_LABEL_1035_ERROR = regex_error(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
    _LABEL_1035,
    "my-name",
    "abc-123",
)


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def qualified_name(value: str) -> tuple[str, ...]:
    """A label or annotation key: [DNS subdomain/]name."""
    errors: list[str] = []
    parts = value.split("/")
    if len(parts) > 2:
        return ("a qualified name " + _QNAME_ERROR + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",)
    name = parts[-1]
    if len(parts) == 2:
        errors += ["prefix part " + EMPTY] if not parts[0] else ["prefix part " + m for m in subdomain(parts[0])]
    if not name:
        errors.append("name part " + EMPTY)
    elif len(name.encode()) > 63:
        errors.append("name part " + max_length(63))
    if not _qname(name):
        errors.append("name part " + _QNAME_ERROR)
    return tuple(errors)


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def label_value(value: str) -> tuple[str, ...]:
    errors = []
    if len(value.encode()) > 63:
        errors.append(max_length(63))
    if not _label_value(value):
        errors.append(_LABEL_VALUE_ERROR)
    return tuple(errors)


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def label(value: str) -> tuple[str, ...]:
    """A DNS-1123 label."""
    errors = []
    if len(value.encode()) > 63:
        errors.append(max_length(63))
    if not _label(value):
        errors.append("must not contain dots" if _subdomain(value) else _LABEL_ERROR)
    return tuple(errors)


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def subdomain(value: str) -> tuple[str, ...]:
    """A DNS-1123 subdomain: what most objects' names are."""
    errors = []
    if len(value.encode()) > 253:
        errors.append(max_length(253))
    if not _subdomain(value):
        errors.append(_SUBDOMAIN_ERROR)
    return tuple(errors)


def label_1035(value: str) -> list[str]:
    errors = []
    if len(value.encode()) > 63:
        errors.append(max_length(63))
    if not _label_1035(value):
        errors.append(_LABEL_1035_ERROR)
    return errors


def wildcard_subdomain(value: str) -> list[str]:
    errors = []
    if len(value.encode()) > 253:
        errors.append(max_length(253))
    if not _wildcard(value):
        text = (
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.'"
            " and end with an alphanumeric character"
        )
        errors.append(regex_error(text, _WILDCARD, "*.example.com"))
    return errors


def path_segment(value: str, prefix: bool = False) -> list[str]:
    """A name that only has to fit into a URL's path (RBAC)."""
    if value in (".", "..") and not prefix:
        return [f"may not be '{value}'"]
    return [f"may not contain '{c}'" for c in "/%" if c in value]


def c_identifier(value: str) -> list[str]:
    if _c_identifier(value):
        return []
    text = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'"
    return [regex_error(text, _C_IDENTIFIER, "my_name", "MY_NAME", "MyName")]


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def env_name(value: str) -> tuple[str, ...]:
    """The name of an environment variable: any printable ASCII but '='."""
    if not value:
        return ("environment variable name " + EMPTY,)
    if not _relaxed_env(value):
        return ("a valid environment variable name must consist only of printable ASCII characters other than '='",)
    return ()


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def config_key(value: str) -> tuple[str, ...]:
    """A key of a ConfigMap or Secret."""
    errors = []
    if len(value.encode()) > 253:
        errors.append(max_length(253))
    if not _config_key(value):
        errors.append(
            regex_error("a valid config key must consist of alphanumeric characters, '-', '_' or '.'", _CONFIG_KEY, "key.name", "KEY_NAME", "key-name")
        )
    if value == ".":
        errors.append("must not be '.'")
    elif value == "..":
        errors.append("must not be '..'")
    elif value.startswith(".."):
        errors.append("must not start with '..'")
    return tuple(errors)


def http_header(value: str) -> list[str]:
    if _http_header(value):
        return []
    return [regex_error("a valid HTTP header must consist of alphanumeric characters or '-'", _HTTP_HEADER, "X-Header-Name")]


def percent(value: str) -> list[str]:
    return [] if _percent(value) else [regex_error("a valid percent string must be a numeric string followed by an ending '%'", _PERCENT, "1%", "93%")]


def port_number(value: int) -> list[str]:
    return [] if 1 <= value <= 65535 else [in_range(1, 65535)]


@functools.lru_cache(maxsize=RULES_CACHED_MAX)
def port_name(value: str) -> tuple[str, ...]:
    """An IANA service name."""
    errors = []
    if len(value.encode()) > 15:
        errors.append(max_length(15))
    if not re.fullmatch("[-a-z0-9]+", value):
        errors.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", value):
        errors.append("must contain at least one letter (a-z)")
    if "--" in value:
        errors.append("must not contain consecutive hyphens")
    if value and (value[0] == "-" or value[-1] == "-"):
        errors.append("must not begin or end with a hyphen")
    return tuple(errors)


def fully_qualified_name(value: str) -> list[str]:
    """Of three parts at least; "" is for the caller to require."""
    errors = subdomain(value)
    if errors:
        return [",".join(errors)]
    return ["should be a domain with at least three segments separated by dots"] if value.count(".") < 2 else []


def name_errors(rule: str, name: str, prefix: bool = False) -> list[str]:
    """What is wrong with a name under a kind's `name_rule`; `prefix`: it is a generateName, which may end in what a name may not."""
    if rule == "path":
        return path_segment(name, prefix)
    if prefix and name.endswith("-"):
        name = name[:-1] + "a"
    if rule == "label":
        return list(label(name))
    if rule == "label1035":
        return label_1035(name)
    return list(subdomain(name))


def ip(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as Go reads it strictly: no zone, no leading zeros."""
    try:
        return ipaddress.ip_address(value) if "%" not in value else None
    except ValueError:
        return None


def sloppy_ip(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as upstream reads it where it is lenient: leading zeros in IPv4 are decimal; an IPv4-mapped address is the IPv4 one."""
    if "." in value and ":" not in value:
        value = ".".join(p.lstrip("0") or "0" if p.isascii() and p.isdigit() and len(p) > 1 else p for p in value.split("."))
    found = ip(value)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return found.ipv4_mapped
    return found


def sloppy_cidr(value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    address, slash, bits = value.partition("/")
    found = sloppy_ip(address)
    if not slash or found is None or not (bits.isascii() and bits.isdigit()) or (len(bits) > 1 and bits[0] == "0") or int(bits) > found.max_prefixlen:
        return None
    return ipaddress.ip_network(f"{found}/{bits}", strict=False)
