"""Makes the container images of the test cluster, without a registry and without a container engine.

An image here is the least that containerd accepts: an OCI layout with one uncompressed layer. All of them
travel in one archive, so that one import brings them into a node.

- `localhost/pause:1`: the sandbox container.
- `localhost/busybox:1`: a shell.
- `localhost/probe:1`: busybox and `/probe`, which opens devices and says what came of it (see `probe.c`).
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cache import cached

PAUSE = "localhost/pause:1"
BUSYBOX = "localhost/busybox:1"
PROBE = "localhost/probe:1"

_SOURCES = Path(__file__).parent
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its name, its only layer as a tar archive, and what it runs."""

    name: str
    layer: bytes
    command: Sequence[str]


def archive() -> Path:
    """Return the archive with all images, made on the first call."""
    sources = [path.read_bytes() for path in (_SOURCES / "pause.c", _SOURCES / "probe.c", Path(__file__))]
    return cached("images", [*sources, platform.machine().encode()], _make) / "images.tar"


def save(path: Path, images: Iterable[Image]) -> None:
    """Write images as one archive that `ctr images import` takes."""
    blobs: dict[str, bytes] = {}
    entries = [_add(blobs, image) for image in images]
    index = {"schemaVersion": 2, "manifests": entries}
    with tarfile.open(path, "w") as tar:
        _add_file(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add_file(tar, "index.json", json.dumps(index).encode())
        for digest, content in blobs.items():
            _add_file(tar, f"blobs/sha256/{digest}", content)


def _make(directory: Path) -> None:
    pause, probe = _compile("pause", directory), _compile("probe", directory)
    images = (
        Image(PAUSE, _layer({"pause": pause}), ["/pause"]),
        Image(BUSYBOX, _layer({}, busybox=True), ["/bin/sh"]),
        Image(PROBE, _layer({"probe": probe}, busybox=True), ["/probe"]),
    )
    save(directory / "images.tar", images)


def _compile(name: str, directory: Path) -> bytes:
    program = directory / name
    flags = ("-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *flags, "-o", str(program), str(_SOURCES / f"{name}.c")], check=True)
    return program.read_bytes()


def _layer(programs: dict[str, bytes], *, busybox: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "dev", "etc", "proc", "sys", "tmp", "var"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        _add_file(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n")
        _add_file(tar, "etc/group", b"root:x:0:\nuser:x:1000:\n")
        for name, content in programs.items():
            _add_file(tar, name, content, mode=0o755)
        if busybox:
            _add_busybox(tar)
    return buffer.getvalue()


def _add_busybox(tar: tarfile.TarFile) -> None:
    program = shutil.which("busybox")
    if program is None:
        raise FileNotFoundError("busybox is missing: run `python -m tests.cluster install-packages`")
    _add_file(tar, "bin/busybox", Path(program).read_bytes(), mode=0o755)
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True)
    for applet in listed.stdout.split():
        if applet == "busybox":
            continue
        entry = tarfile.TarInfo(f"bin/{applet}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(entry)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _add(blobs: dict[str, bytes], image: Image) -> dict[str, object]:
    """Store an image's blobs and return its entry in the index."""
    layer = _blob(blobs, image.layer, _LAYER)
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": list(image.command), "Env": ["PATH=/bin:/"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _blob(blobs, json.dumps(config).encode(), _CONFIG),
        "layers": [layer],
    }
    entry = _blob(blobs, json.dumps(manifest).encode(), _MANIFEST)
    # containerd reads the whole name from its own annotation; the OCI one carries the tag only.
    return {**entry, "annotations": {"io.containerd.image.name": image.name}}


def _blob(blobs: dict[str, bytes], content: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
