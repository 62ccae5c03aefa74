"""The kubelet's two checkpoint files, in the formats of the real ones (kubelet-contract A.8, B.2).

The real checksum hashes a Go struct dump; here it is FNV-1a over the data's JSON: opaque to readers either way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEVICES = "kubelet_internal_checkpoint"
CLAIMS = "dra_manager_state"


class CheckpointCorrupt(Exception):
    """A checkpoint file that does not parse or whose checksum is wrong."""


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def write(path: Path, data: Any) -> None:
    """Replace a checkpoint file by way of a temporary one."""
    text = json.dumps(data, separators=(",", ":"))
    checksum = _fnv1a(text.encode())
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(f'{{"Data":{text},"Checksum":{checksum}}}')
    temporary.replace(path)


def read(path: Path) -> Any | None:
    """Return a checkpoint's data, None if there is no file.

    Raises:
        CheckpointCorrupt: if it is not whole.
    """
    try:
        raw = path.read_text()
    except FileNotFoundError:
        return None
    try:
        whole = json.loads(raw)
        data, checksum = whole["Data"], whole["Checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"could not read checkpoint {path.name}: {error}") from error
    if _fnv1a(json.dumps(data, separators=(",", ":")).encode()) != checksum:
        raise CheckpointCorrupt(f"checkpoint {path.name} is corrupted")
    return data
