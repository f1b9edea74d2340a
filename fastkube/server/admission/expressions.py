"""CEL as admission has it: what expressions may name, Kubernetes' authorizer functions, and programs compiled once.

Variables: object, oldObject, request, params, namespaceObject, variables, authorizer (https://kubernetes.io/docs/reference/using-api/cel/).
The `authorizer` that expressions pass around is a map of what was said so far; who asks whom is known to the evaluation alone (`_asking`).
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

from fastkube.server.authz import Authorizer
from fastkube.server.request import RequestInfo, User

PROGRAMS_MAX = 4096
VARIABLES = ("object", "oldObject", "request", "params", "namespaceObject", "variables", "authorizer")

_asking: contextvars.ContextVar[tuple[Authorizer, User]] = contextvars.ContextVar("asking")


class ExpressionError(ValueError):
    """The expression does not compile or has no value; the text says why."""


@functools.cache
def environment() -> Any:
    from cel_expr_python import cel
    from cel_expr_python.ext import ext_bindings, ext_encoders, ext_math, ext_optional, ext_strings

    from fastkube.api.rulelib import FUNCTIONS

    extensions = [ext_bindings.ExtBindings(), ext_strings.ExtStrings(), ext_math.ExtMath(), ext_encoders.ExtEncoders(), ext_optional.ExtOptional()]
    own = [cel.CelExtension("kubernetes", FUNCTIONS), cel.CelExtension("authorizer", _authorizer_functions(cel))]
    return cel.NewEnv(variables=dict.fromkeys(VARIABLES, cel.Type.DYN), extensions=[*extensions, *own])


@functools.lru_cache(maxsize=PROGRAMS_MAX)
def compiled(text: str) -> Any:
    """Raises ExpressionError in CEL's words."""
    try:
        return environment().compile(text)
    except (RuntimeError, ValueError) as e:
        raise ExpressionError(str(e).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")) from None


def evaluate(text: str, data: dict[str, Any], authorizer: Authorizer, user: User) -> Any:
    """The plain value of an expression. Raises ExpressionError."""
    token = _asking.set((authorizer, user))
    try:
        value = compiled(text).eval(data=data)
        plain = value.plain_value()
    except (RuntimeError, ValueError, TypeError) as e:
        raise ExpressionError(str(e)) from None
    finally:
        _asking.reset(token)
    if value.type().name() == "ERROR":
        raise ExpressionError(_words(str(value.value())))
    return plain


def _words(problem: str) -> str:
    """cel-cpp's errors in cel-go's words, where upstream shows them."""
    if problem.startswith("NOT_FOUND: Key not found in map : "):
        return "no such key: " + problem.rpartition(" : ")[2].strip('"')
    return problem.partition(": ")[2] or problem


def _authorizer_functions(cel: Any) -> list[Any]:
    """authorizer.group(g).resource(r).subresource(s).namespace(n).name(n).check(verb), .path(p).check(verb), .serviceAccount(ns, name), .allowed() ..."""
    types, some = cel.Type, cel.Type.Map(cel.Type.STRING, cel.Type.DYN)

    def function(name: str, parameters: list[Any], result: Any, body: Callable[..., Any]) -> Any:
        return cel.FunctionDecl(name, [cel.Overload(f"authorizer_{name}", result, [some, *parameters], True, body)])

    def setter(name: str) -> Any:
        return function(name, [types.STRING], types.DYN, lambda asked, value: {**_plain(asked), name: value})

    return [
        *(setter(n) for n in ("path", "group", "resource", "subresource", "namespace", "name", "fieldSelector", "labelSelector")),
        function("serviceAccount", [types.STRING, types.STRING], types.DYN, lambda asked, ns, name: {**_plain(asked), "serviceAccount": f"{ns}:{name}"}),
        function("check", [types.STRING], types.DYN, _check),
        function("allowed", [], types.BOOL, lambda decision: _plain(decision).get("allowed") is True),
        function("reason", [], types.STRING, lambda decision: _plain(decision).get("reason", "")),
        function("errored", [], types.BOOL, lambda decision: False),
        function("error", [], types.STRING, lambda decision: ""),
    ]


def _check(asked: Any, verb: str) -> dict[str, Any]:
    asked = _plain(asked)
    authorizer, user = _asking.get()
    account = asked.get("serviceAccount")
    if account:
        namespace = account.partition(":")[0]
        user = User(f"system:serviceaccount:{account}", ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"))
    if "path" in asked:
        info = RequestInfo(verb, asked["path"])
    else:
        info = RequestInfo(verb, "", True, asked.get("group", ""), "*", asked.get("resource", ""), asked.get("subresource", ""), asked.get("namespace", ""))
        info.name, info.field_selector = asked.get("name", ""), asked.get("fieldSelector", "")
    decision = authorizer.authorize(user, info)
    return {"allowed": decision.allowed, "reason": decision.reason}


def _plain(value: Any) -> dict[str, Any]:
    return {k: v.plain_value() if hasattr(v, "plain_value") else v for k, v in dict(value).items()}
