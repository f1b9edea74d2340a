"""What form an answer takes: Accept and ?pretty -> `Form` (k8s.io/apiserver/pkg/endpoints/handlers/negotiation).

JSON is the form that costs nothing; YAML, Table and PartialObjectMetadata are made out of the decoded object. Accept headers repeat, so what they
ask for is remembered.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson
import yaml

from fastkube.api.errors import ApiError, unsupported_media_type
from fastkube.http.message import Request

ACCEPTS_MAX = 1024
JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
_SERVED = f"{JSON}, {YAML}, {PROTOBUF}"
_TRANSFORMS = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")


class Form(NamedTuple):
    media: str = JSON
    as_: str = ""  # Table, PartialObjectMetadata, PartialObjectMetadataList; "" for the object itself
    version: str = "v1"  # of meta.k8s.io, for as_
    pretty: bool = False

    @property
    def plain(self) -> bool:
        """The stored bytes are the answer."""
        return not self.as_ and self.media == JSON and not self.pretty


PLAIN = Form()
_PRETTY = Form(pretty=True)
_known: dict[str, Form | None] = {"": PLAIN, "*/*": PLAIN, JSON: PLAIN}


def _parse(accept: str) -> Form | None:
    """The first clause that can be served, by quality; None when none can."""
    clauses = []
    for clause in accept.split(","):
        media, *params = (part.strip() for part in clause.split(";"))
        pairs = dict(p.split("=", 1) for p in params if "=" in p)
        try:
            quality = float(pairs.get("q", "1"))
        except ValueError:
            quality = 1.0
        clauses.append((quality, media.lower(), pairs))
    clauses.sort(key=lambda c: -c[0])  # stable: equal ones in the order given
    for quality, media, pairs in clauses:
        if quality <= 0:
            continue
        if media in ("*/*", "application/*", JSON):
            media = JSON
        elif media in (YAML, "application/x-yaml", "text/yaml"):
            media = YAML
        else:
            continue
        as_ = pairs.get("as", "")
        if not as_:
            return Form(media)
        if as_ in _TRANSFORMS and pairs.get("g") == "meta.k8s.io" and pairs.get("v") in ("v1", "v1beta1"):
            return Form(media, as_, pairs["v"])
    return None


def negotiate(request: Request) -> Form:
    """ApiError 406 when no clause of Accept can be served."""
    accept = request.headers.get("accept", "")
    try:
        form = _known[accept]
    except KeyError:
        form = _parse(accept)
        if len(_known) < ACCEPTS_MAX:
            _known[accept] = form
    if form is None:
        raise ApiError(406, "NotAcceptable", f"406: Not Acceptable\n\nAvailable representations: {_SERVED}", {})
    if request.raw_query and "pretty=" in request.raw_query and request.param("pretty").lower() in ("1", "true"):
        return form._replace(pretty=True)
    return form


def render(obj: Any, form: Form) -> bytes:
    if form.media == YAML:
        return yaml.dump(obj, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=True, width=2**31 - 1).encode()
    if form.pretty:
        return orjson.dumps(obj, option=orjson.OPT_INDENT_2)
    return orjson.dumps(obj)


# Plain words that YAML 1.1 readers take for something else than a string, as Go's writer knows them.
_NOT_STRINGS = re.compile(
    r"~|null|Null|NULL||[yYnN]|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|true|True|TRUE|false|False|FALSE"
    r"|[-+]?[0-9][0-9_]*|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[bB][01_]+|0o[0-7_]+|[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|<<|="
)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """YAML as Go's writer has it: no aliases, texts of several lines as blocks, what would read as something else in double quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, data: str) -> Any:
    style = "|" if "\n" in data else '"' if _NOT_STRINGS.fullmatch(data) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _text)


def content_type(request: Request, accepted: tuple[str, ...] = (JSON, YAML, PROTOBUF)) -> str:
    """The media type of the body; JSON when the request does not say. ApiError 415."""
    header = request.headers.get("content-type", "")
    media = header.partition(";")[0].partition(",")[0].strip().lower() or JSON
    if media not in accepted:
        raise unsupported_media_type(f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}")
    return media


def error_form(request: Request | None) -> Form:
    """The form of a Status: as asked where it can be, JSON otherwise."""
    try:
        return negotiate(request)._replace(as_="") if request is not None else PLAIN
    except ApiError:
        return PLAIN
