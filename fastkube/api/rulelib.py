"""The functions that Kubernetes adds to CEL (k8s.io/apiserver/pkg/cel/library): lists, regular expressions, quantities, IPs, CIDRs, URLs, sets.

cel-cpp's binding has no opaque types, so a quantity, address or URL is a map with the one key `KIND`, which rules only meet through these functions (and `==`).
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cel_expr_python import cel

from fastkube.api import quantity

T = cel.Type
FUNCTIONS: list[Any] = []
PATTERNS_MAX = 1024

_NANO = quantity.NANO


def _function(name: str, result: Any, *parameters: Any, member: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare what is decorated as a CEL function; several with one name are its overloads."""

    def declare(implementation: Callable[..., Any]) -> Callable[..., Any]:
        kinds = "_".join(p.name() for p in parameters)
        _overloads.setdefault(name, []).append(
            cel.Overload(f"k8s_{name}_{'m' if member else 'f'}_{kinds}".replace(".", "_"), result, list(parameters), member, implementation)
        )
        return implementation

    return declare


_overloads: dict[str, list[Any]] = {}


# Lists.


@_function("isSorted", T.BOOL, T.LIST, member=True)
def _is_sorted(items: list[Any]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(items))


@_function("sum", T.DYN, T.LIST, member=True)
def _sum(items: list[Any]) -> Any:
    return sum(items[1:], items[0]) if items else 0


@_function("min", T.DYN, T.LIST, member=True)
def _min(items: list[Any]) -> Any:
    return min(items)


@_function("max", T.DYN, T.LIST, member=True)
def _max(items: list[Any]) -> Any:
    return max(items)


@_function("indexOf", T.INT, T.LIST, T.DYN, member=True)
def _index_of(items: list[Any], item: Any) -> int:
    return items.index(item) if item in items else -1


@_function("lastIndexOf", T.INT, T.LIST, T.DYN, member=True)
def _last_index_of(items: list[Any], item: Any) -> int:
    return len(items) - 1 - items[::-1].index(item) if item in items else -1


# Sets.


@_function("sets.contains", T.BOOL, T.LIST, T.LIST)
def _sets_contains(a: list[Any], b: list[Any]) -> bool:
    return all(item in a for item in b)


@_function("sets.equivalent", T.BOOL, T.LIST, T.LIST)
def _sets_equivalent(a: list[Any], b: list[Any]) -> bool:
    return _sets_contains(a, b) and _sets_contains(b, a)


@_function("sets.intersects", T.BOOL, T.LIST, T.LIST)
def _sets_intersects(a: list[Any], b: list[Any]) -> bool:
    return any(item in a for item in b)


# Regular expressions.


@functools.lru_cache(maxsize=PATTERNS_MAX)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


@_function("find", T.STRING, T.STRING, T.STRING, member=True)
def _find(text: str, pattern: str) -> str:
    m = _pattern(pattern).search(text)
    return m[0] if m else ""


@_function("findAll", T.LIST, T.STRING, T.STRING, member=True)
def _find_all(text: str, pattern: str) -> list[str]:
    return [m[0] for m in _pattern(pattern).finditer(text)]


@_function("findAll", T.LIST, T.STRING, T.STRING, T.INT, member=True)
def _find_some(text: str, pattern: str, limit: int) -> list[str]:
    found = _find_all(text, pattern)
    return found if limit < 0 else found[:limit]


# Quantities: the exact value in nano units, as text so that it never overflows.


def _nano(value: dict[str, str]) -> int:
    return int(value["quantity"])


@_function("isQuantity", T.BOOL, T.STRING)
def _is_quantity(text: str) -> bool:
    try:
        quantity.parse(text)
    except quantity.QuantityError:
        return False
    return True


@_function("quantity", T.MAP, T.STRING)
def _quantity(text: str) -> dict[str, str]:
    return {"quantity": str(quantity.parse(text)[0])}


@_function("sign", T.INT, T.MAP, member=True)
def _sign(q: dict[str, str]) -> int:
    return (_nano(q) > 0) - (_nano(q) < 0)


@_function("isInteger", T.BOOL, T.MAP, member=True)
def _is_integer(q: dict[str, str]) -> bool:
    return _nano(q) % _NANO == 0


@_function("asInteger", T.INT, T.MAP, member=True)
def _as_integer(q: dict[str, str]) -> int:
    if _nano(q) % _NANO:
        raise ValueError("cannot convert value to integer")
    return _nano(q) // _NANO


@_function("asApproximateFloat", T.DOUBLE, T.MAP, member=True)
def _as_float(q: dict[str, str]) -> float:
    return _nano(q) / _NANO


def _amount(other: Any) -> int:
    return other * _NANO if isinstance(other, int) else _nano(other)


@_function("add", T.MAP, T.MAP, T.DYN, member=True)
def _add(q: dict[str, str], other: Any) -> dict[str, str]:
    return {"quantity": str(_nano(q) + _amount(other))}


@_function("sub", T.MAP, T.MAP, T.DYN, member=True)
def _sub(q: dict[str, str], other: Any) -> dict[str, str]:
    return {"quantity": str(_nano(q) - _amount(other))}


@_function("isLessThan", T.BOOL, T.MAP, T.MAP, member=True)
def _less(a: dict[str, str], b: dict[str, str]) -> bool:
    return _nano(a) < _nano(b)


@_function("isGreaterThan", T.BOOL, T.MAP, T.MAP, member=True)
def _greater(a: dict[str, str], b: dict[str, str]) -> bool:
    return _nano(a) > _nano(b)


@_function("compareTo", T.INT, T.MAP, T.MAP, member=True)
def _compare(a: dict[str, str], b: dict[str, str]) -> int:
    return (_nano(a) > _nano(b)) - (_nano(a) < _nano(b))


# Addresses.


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    at = ipaddress.ip_address(text)
    if "%" in text or (isinstance(at, ipaddress.IPv6Address) and at.ipv4_mapped):
        raise ValueError(f"IP Address {text!r} with zone or IPv4-mapped is not allowed")
    return at


def _network(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    if "/" not in text:
        raise ValueError(f"network address parse error: {text!r}: no '/'")
    return ipaddress.ip_interface(text)


def _valid(parse: Callable[[str], Any], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


@_function("isIP", T.BOOL, T.STRING)
def _is_ip(text: str) -> bool:
    return _valid(_address, text)


@_function("ip", T.MAP, T.STRING)
def _ip(text: str) -> dict[str, str]:
    return {"ip": str(_address(text))}


@_function("ip.isCanonical", T.BOOL, T.STRING)
def _is_canonical(text: str) -> bool:
    return str(_address(text)) == text


@_function("family", T.INT, T.MAP, member=True)
def _family(at: dict[str, str]) -> int:
    return _address(at["ip"]).version


@_function("isUnspecified", T.BOOL, T.MAP, member=True)
def _is_unspecified(at: dict[str, str]) -> bool:
    return _address(at["ip"]).is_unspecified


@_function("isLoopback", T.BOOL, T.MAP, member=True)
def _is_loopback(at: dict[str, str]) -> bool:
    return _address(at["ip"]).is_loopback


@_function("isLinkLocalUnicast", T.BOOL, T.MAP, member=True)
def _is_link_local(at: dict[str, str]) -> bool:
    return _address(at["ip"]).is_link_local


@_function("isLinkLocalMulticast", T.BOOL, T.MAP, member=True)
def _is_link_local_multicast(at: dict[str, str]) -> bool:
    return at["ip"].startswith("224.0.0.") or at["ip"].startswith("ff02:")


@_function("isGlobalUnicast", T.BOOL, T.MAP, member=True)
def _is_global_unicast(at: dict[str, str]) -> bool:
    a = _address(at["ip"])
    return not (a.is_unspecified or a.is_loopback or a.is_multicast or a.is_link_local or at["ip"] == "255.255.255.255")


@_function("isCIDR", T.BOOL, T.STRING)
def _is_cidr(text: str) -> bool:
    return _valid(_network, text)


@_function("cidr", T.MAP, T.STRING)
def _cidr(text: str) -> dict[str, str]:
    return {"cidr": _network(text).with_prefixlen}


@_function("containsIP", T.BOOL, T.MAP, T.DYN, member=True)
def _contains_ip(net: dict[str, str], at: Any) -> bool:
    return _address(at if isinstance(at, str) else at["ip"]) in _network(net["cidr"]).network


@_function("containsCIDR", T.BOOL, T.MAP, T.DYN, member=True)
def _contains_cidr(net: dict[str, str], other: Any) -> bool:
    outer, inner = _network(net["cidr"]).network, _network(other if isinstance(other, str) else other["cidr"]).network
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


@_function("ip", T.MAP, T.MAP, member=True)
def _cidr_ip(net: dict[str, str]) -> dict[str, str]:
    return {"ip": str(_network(net["cidr"]).ip)}


@_function("masked", T.MAP, T.MAP, member=True)
def _masked(net: dict[str, str]) -> dict[str, str]:
    return {"cidr": str(_network(net["cidr"]).network)}


@_function("prefixLength", T.INT, T.MAP, member=True)
def _prefix_length(net: dict[str, str]) -> int:
    return _network(net["cidr"]).network.prefixlen


# URLs.


def _url(text: str) -> Any:
    parts = urlsplit(text)
    if not (parts.scheme and (parts.netloc or parts.path)) and not text.startswith("/"):
        raise ValueError(f"URL parse error: {text!r}")
    _ = parts.port
    return parts


@_function("isURL", T.BOOL, T.STRING)
def _is_url(text: str) -> bool:
    return _valid(_url, text)


@_function("url", T.MAP, T.STRING)
def _make_url(text: str) -> dict[str, str]:
    _url(text)
    return {"url": text}


@_function("getScheme", T.STRING, T.MAP, member=True)
def _scheme(u: dict[str, str]) -> str:
    return _url(u["url"]).scheme


@_function("getHost", T.STRING, T.MAP, member=True)
def _host(u: dict[str, str]) -> str:
    return _url(u["url"]).netloc.rpartition("@")[2]


@_function("getHostname", T.STRING, T.MAP, member=True)
def _hostname(u: dict[str, str]) -> str:
    return _url(u["url"]).hostname or ""


@_function("getPort", T.STRING, T.MAP, member=True)
def _port(u: dict[str, str]) -> str:
    port = _url(u["url"]).port
    return "" if port is None else str(port)


@_function("getEscapedPath", T.STRING, T.MAP, member=True)
def _path(u: dict[str, str]) -> str:
    return _url(u["url"]).path


@_function("getQuery", T.MAP, T.MAP, member=True)
def _query(u: dict[str, str]) -> dict[str, list[str]]:
    return parse_qs(_url(u["url"]).query, keep_blank_values=True)


FUNCTIONS += [cel.FunctionDecl(name, overloads) for name, overloads in _overloads.items()]
