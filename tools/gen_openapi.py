"""Makes fastkube/server/data/openapi.zip from fastkube/api/data/swagger.json.xz: the OpenAPI documents of the built-in API, compressed as they are sent.

    PYTHONPATH=. python tools/gen_openapi.py

Run by hand when the target release or fastkube.api.openapi changes; its output is committed, so that the server only has to send what lies there.
"""

import gzip
import lzma
import zipfile
from pathlib import Path

import orjson

from fastkube.api import gnostic, openapi

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    whole = openapi.ga(orjson.loads(lzma.decompress((ROOT / "fastkube/api/data/swagger.json.xz").read_bytes())))
    paths, definitions = whole.pop("paths"), whole.pop("definitions")
    head = orjson.dumps(whole)[:-1] + b',"paths":' + orjson.dumps(paths)[:-1]  # custom resources' paths go in here, their definitions at the end
    tail = b'},"definitions":' + orjson.dumps(definitions) + b"}"
    groups: dict[str, dict] = {}
    for path, item in paths.items():
        groups.setdefault(openapi.key(path), {})[path] = item
    with zipfile.ZipFile(ROOT / "fastkube/server/data/openapi.zip", "w", zipfile.ZIP_STORED) as out:

        def write(name: str, data: bytes) -> None:
            out.writestr(zipfile.ZipInfo(name), gzip.compress(data, 9, mtime=0))

        write(f"v2.json@{len(head)}", head + tail)
        common = [f"io.k8s.apimachinery.pkg.apis.meta.v1.{name}" for name in ("ObjectMeta", "ListMeta", "DeleteOptions", "Status")] + [
            "io.k8s.api.autoscaling.v1.Scale"
        ]
        write("common", orjson.dumps(openapi.reached(definitions, [[{"$ref": name} for name in common]])))  # what custom resources refer to
        write("v2.pb", gnostic.document({**whole, "paths": paths, "definitions": definitions}))
        for key, of in groups.items():
            write(f"v3/{key}", orjson.dumps(openapi.document_v3(of, definitions, whole["parameters"])))


if __name__ == "__main__":
    main()
