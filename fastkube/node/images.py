"""Container images made on this machine from Debian's packages, for clusters that reach no registry.

Guarantees: no docker, no network and no root are needed; an image is one OCI archive (image-spec 1.0 layout in a tar) that
`ctr images import` and every other OCI tool reads; the same files give the same bytes (times and owners are fixed).

Recipes: `registry.k8s.io/pause` (C, `gcc -static`; without a compiler, busybox that sleeps and reaps), `docker.io/library/busybox` (busybox-static),
`docker.io/library/nginx` (nginx-light with its libraries, and busybox for a shell). Any tag may be asked for: the contents are the same.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

PAUSE = "registry.k8s.io/pause:3.10"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PAUSE_C = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void down(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  struct sigaction end = {.sa_handler = down}, child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  if (sigaction(SIGINT, &end, 0) || sigaction(SIGTERM, &end, 0) || sigaction(SIGCHLD, &child, 0)) return 1;
  for (;;) pause();
}
"""

_NGINX_CONF = """\
user nginx;
worker_processes auto;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
"""

_NGINX_SITE = """\
server {
    listen 80;
    server_name localhost;
    location / {
        root /usr/share/nginx/html;
        index index.html;
    }
}
"""

_NGINX_PAGE = """\
<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p>Served from a container of fastkube.</p></body></html>
"""


class ImageError(Exception):
    """Something an image is made of is missing; the text names the package."""


@dataclass
class Layer:
    """The files of a root filesystem, path -> entry; parents are made as needed."""

    entries: dict[str, tuple[tarfile.TarInfo, bytes]] = field(default_factory=dict)

    def _add(self, path: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.directory(parent)
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
        self.entries[path] = (info, data)

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._add(path, tarfile.DIRTYPE, mode)

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        self._add(path, tarfile.REGTYPE, mode, data.encode() if isinstance(data, str) else data)

    def symlink(self, path: str, target: str) -> None:
        self._add(path, tarfile.SYMTYPE, 0o777, link=target)

    def copy(self, source: str, path: str | None = None) -> None:
        """A file of this machine, symlinks followed, executable as there."""
        with open(source, "rb") as f:
            self.file(path or source, f.read(), 0o755 if os.fstat(f.fileno()).st_mode & stat.S_IXUSR else 0o644)

    def tar(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(self.entries):
                info, data = self.entries[path]
                tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
        return out.getvalue()


@dataclass
class Recipe:
    layer: Layer
    config: dict[str, Any]


def _need(path: str, package: str) -> str:
    if not os.path.exists(path):
        raise ImageError(f"{path} is missing (Debian: apt-get install {package})")
    return path


def _system(layer: Layer, users: Sequence[str] = ()) -> None:
    """What every root filesystem has."""
    passwd = ["root:x:0:0:root:/root:/bin/sh", "daemon:x:1:1:daemon:/usr/sbin:/bin/false", *users, "nobody:x:65534:65534:nobody:/home:/bin/false"]
    layer.file("etc/passwd", "".join(line + "\n" for line in passwd))
    layer.file("etc/group", "".join(f"{line.split(':')[0]}:x:{line.split(':')[3]}:\n" for line in passwd))
    layer.file("etc/nsswitch.conf", "hosts: files dns\npasswd: files\ngroup: files\n")
    layer.directory("tmp", 0o1777)
    layer.directory("root", 0o700)
    for directory in ("home", "var/run", "run", "dev", "proc", "sys", "usr/bin", "usr/sbin"):
        layer.directory(directory)


def _busybox_into(layer: Layer) -> None:
    # Debian machines have either busybox or busybox-static; the two exclude each other
    binary = _need("/bin/busybox", "busybox")
    layer.copy(binary, "bin/busybox")
    for library in libraries(binary):
        layer.copy(library)
    for path in subprocess.run([binary, "--list-full"], check=True, capture_output=True, text=True).stdout.split():
        if os.path.basename(path) != "busybox":
            layer.symlink("bin/" + os.path.basename(path), "/bin/busybox")
    layer.symlink("usr/bin/env", "/bin/busybox")


def busybox() -> Recipe:
    layer = Layer()
    _system(layer)
    _busybox_into(layer)
    return Recipe(layer, {"Cmd": ["sh"]})


def pause() -> Recipe:
    layer = Layer()
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler:
        with tempfile.TemporaryDirectory() as work:
            source, binary = Path(work, "pause.c"), Path(work, "pause")
            source.write_text(_PAUSE_C)
            built = subprocess.run([compiler, "-static", "-Os", "-s", "-o", str(binary), str(source)], capture_output=True)
            if built.returncode == 0:
                layer.file("pause", binary.read_bytes(), 0o755)
                return Recipe(layer, {"Entrypoint": ["/pause"]})
    _busybox_into(layer)
    return Recipe(layer, {"Entrypoint": ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done"]})


def libraries(binary: str) -> set[str]:
    """The shared libraries of `binary` and the loader, as ldd resolves them; none for a static one."""
    found = set()
    for line in subprocess.run(["ldd", binary], capture_output=True, text=True).stdout.splitlines():
        path = line.partition("=>")[2].split() or line.split()
        if path and path[0].startswith("/"):
            found.add(path[0])
    return found


def nginx() -> Recipe:
    binary = _need("/usr/sbin/nginx", "nginx-light")
    layer = Layer()
    _system(layer, ["nginx:x:101:101:nginx:/nonexistent:/bin/false"])
    _busybox_into(layer)
    layer.copy(binary)
    for library in libraries(binary):
        layer.copy(library)
    layer.copy(_need("/etc/nginx/mime.types", "nginx-common"))
    layer.file("etc/nginx/nginx.conf", _NGINX_CONF)
    layer.file("etc/nginx/conf.d/default.conf", _NGINX_SITE)
    layer.file("usr/share/nginx/html/index.html", _NGINX_PAGE)
    for directory in ("var/log/nginx", "var/lib/nginx", "var/cache/nginx"):
        layer.directory(directory)
    return Recipe(layer, {"Cmd": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}})


RECIPES: dict[str, Callable[[], Recipe]] = {"docker.io/library/busybox": busybox, "docker.io/library/nginx": nginx, "registry.k8s.io/pause": pause}
DEFAULT_TAGS = {"registry.k8s.io/pause": "3.10"}


def qualified(name: str) -> tuple[str, str]:
    """`nginx`, `nginx:1.25`, `docker.io/library/nginx:latest`, `pause` -> (repository, tag); ImageError when there is no recipe."""
    repository, _, tag = name.rpartition(":") if ":" in name.rsplit("/", 1)[-1] else (name, "", "")
    for known in RECIPES:
        if repository in (known, known.rsplit("/", 1)[-1], known.removeprefix("docker.io/")):
            return known, tag or DEFAULT_TAGS.get(known, "latest")
    raise ImageError(f"no recipe for image {name!r}; there are: {', '.join(k.rsplit('/', 1)[-1] for k in RECIPES)}")


def write_archive(recipe: Recipe, references: Sequence[str], path: Path) -> None:
    """One OCI archive with an image for each of `references` (`docker.io/library/nginx:latest`): the same files, the tag as its version label."""
    layer = recipe.layer.tar()
    packed = gzip.compress(layer, 1, mtime=0)
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        blobs[_digest(data)] = data
        return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}

    def image(reference: str) -> dict[str, Any]:
        tag = reference.rpartition(":")[2]
        config = {
            "architecture": architecture, "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {"Env": [f"PATH={PATH}"], "WorkingDir": "/", "Labels": {"org.opencontainers.image.version": tag}, **recipe.config},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}, "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "fastkube"}],
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": blob(orjson.dumps(config), "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(packed, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }  # fmt: skip
        annotations = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag}
        return {**blob(orjson.dumps(manifest), MANIFEST), "platform": {"architecture": architecture, "os": "linux"}, "annotations": annotations}

    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [image(r) for r in references]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": orjson.dumps(index)}
    files |= {"blobs/" + digest.replace(":", "/"): data for digest, data in blobs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    beside.replace(path)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def build(names: Sequence[str], out: Path) -> list[Path]:
    """Build images into `out`, one archive per recipe (all tags asked for in it); returns the archives. ImageError when a part is missing."""
    tags: dict[str, list[str]] = {}
    for name in names:
        repository, tag = qualified(name)
        tags.setdefault(repository, []).append(tag)
    archives = []
    for repository, wanted in tags.items():
        path = Path(out) / f"{repository.rsplit('/', 1)[-1]}.tar"
        write_archive(RECIPES[repository](), [f"{repository}:{tag}" for tag in wanted], path)
        archives.append(path)
    return archives


async def import_archives(address: str, archives: Sequence[Path]) -> None:
    """Load archives into the containerd behind the socket `address`, in CRI's namespace."""
    for archive in archives:
        process = await asyncio.create_subprocess_exec(
            "ctr", "--address", address.removeprefix("unix://"), "-n", "k8s.io", "images", "import", str(archive),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        if process.returncode:
            raise ImageError(f"import of {archive} failed: {output.decode(errors='replace').strip()}")


def main(arguments: Sequence[str]) -> int:
    """`build --out DIR NAME...` prints the archives' paths; `import --address SOCKET FILE...` loads them; `load --data-dir DIR NAME...` does both for the
    containerd of the node whose data directory is DIR."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m fastkube.node.images")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("build", help="build OCI archives from Debian's packages")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb = verbs.add_parser("import", help="import archives into a containerd")
    verb.add_argument("--address", required=True)
    verb.add_argument("files", nargs="+", type=Path, metavar="FILE")
    verb = verbs.add_parser("load", help="build images and import them into a node's containerd")
    verb.add_argument("--data-dir", type=Path, required=True, help="the node's data directory")
    verb.add_argument("names", nargs="+", metavar="NAME")
    asked = parser.parse_args(arguments)
    try:
        if asked.verb == "build":
            print("\n".join(map(str, build(asked.names, asked.out))))
        elif asked.verb == "load":
            from fastkube.node.containerd import Containerd

            archives = build(asked.names, asked.data_dir / "images")
            asyncio.run(import_archives(Containerd(asked.data_dir).endpoint, archives))
        else:
            asyncio.run(import_archives(asked.address, asked.files))
    except (ImageError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
