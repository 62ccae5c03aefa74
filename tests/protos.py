"""Generates the Python stubs of every .proto file of the project, in place, or checks that they are current.

`python -m tests.protos` writes; `python -m tests.protos --check` generates elsewhere, compares, and exits
with 1 if a stub differs. protoc runs from the repository root, so that stubs import each other by their
package path.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dra_v1/api", "deviceplugin_v1beta1/api", "bridge/platform/api")
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def proto_files() -> list[Path]:
    """Every .proto file, relative to the repository root."""
    found = [proto for package in PACKAGES for proto in sorted((ROOT / package).glob("*.proto"))]
    return [proto.relative_to(ROOT) for proto in found]


def stubs_of(proto: Path) -> list[Path]:
    """The files that are generated from one .proto file."""
    return [proto.with_name(proto.stem + suffix) for suffix in SUFFIXES]


def generate(folder: Path) -> None:
    """Write all stubs below `folder`. Raises RuntimeError if protoc refuses; its own words are on stderr."""
    include = Path(protoc.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={include}",
        # Beside the interpreter, for a virtual environment that is not activated is not on PATH.
        *(
            f"--plugin=protoc-gen-{kind}={Path(sys.executable).with_name(f'protoc-gen-{kind}')}"
            for kind in ("mypy", "mypy_grpc")
        ),
        *(f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *(str(proto) for proto in proto_files()),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc could not generate the stubs of {len(proto_files())} files (see above)")


def outdated() -> list[Path]:
    """Stubs that differ from what is generated now, or are missing, relative to the repository root."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stubs = [stub for proto in proto_files() for stub in stubs_of(proto)]
        return [stub for stub in stubs if _read(ROOT / stub) != _read(Path(folder) / stub)]


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.protos", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if a stub is not current")
    if not parser.parse_args(arguments).check:
        generate(ROOT)
        return 0
    stale = outdated()
    for stub in stale:
        print(f"{stub} is not what its .proto file generates: run `python -m tests.protos`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
