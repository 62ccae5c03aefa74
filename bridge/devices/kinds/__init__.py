"""The registry of device kinds. A new kind is one module beside this one and one entry here."""

from collections.abc import Mapping
from typing import Any

from bridge.devices.kinds.base import Kind
from bridge.devices.kinds.device_node import DeviceNodeKind
from bridge.devices.kinds.nx_gzip import NxGzipKind

# Each kind has its own options type, and a group's options were validated by its kind's own schema.
KINDS: Mapping[str, Kind[Any]] = {kind.name: kind for kind in (DeviceNodeKind(), NxGzipKind())}
