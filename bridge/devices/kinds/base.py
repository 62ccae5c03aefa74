"""What a device kind is: configuration schema, discovery, watches, opaque parameters and their edits.

A kind is one module and one entry in the registry; nothing else in the bridge names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bridge.devices.model import ContainerEdits, Device, Problem
from bridge.devices.schema import FieldError
from bridge.platform.roots import Roots

O = TypeVar("O")  # noqa: E741 - the options of a kind


@dataclass(frozen=True, slots=True)
class Found:
    """What one group's discovery found, before it is merged with the other groups'.

    Attributes:
        devices: amounts in `parts` are of this group's own capacities: an amount that equals the capacity
            means "all of it" and stays so after the merge.
        parts: capacity of each part, in this group's eyes.
        problems: what was left out, and why.
        identities: what the machine says a part really is (`c4:20`). Two parts with one identity are one
            silicon.
    """

    devices: tuple[Device, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    identities: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watches:
    """What tells that another scan may find something else.

    Attributes:
        directories: host paths under `/dev`; they need not exist yet.
        subsystems: of kernel uevents, for what is in `/sys`.
    """

    directories: frozenset[str] = frozenset()
    subsystems: frozenset[str] = frozenset()

    def __or__(self, other: Watches) -> Watches:
        return Watches(self.directories | other.directories, self.subsystems | other.subsystems)


class ParameterErrors(ValueError):
    """Opaque parameters that a kind does not accept.

    Attributes:
        errors: each with the path of the field below `parameters`.
    """

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = tuple(errors)


class Kind(ABC, Generic[O]):
    """One kind of device.

    Attributes:
        name: as written in the configuration.
        options: schema of a group's `options`: a frozen dataclass, decoded by `bridge.devices.schema`.
        claim_unit: the consumable capacity that a claim asks an amount of, where one device has all shares; empty
            where a claim asks for a number of devices.
    """

    name: str
    options: type[O]
    claim_unit: str = ""

    @abstractmethod
    def discover(self, group: str, options: O, roots: Roots) -> Found:
        """What is there now. Reads the trees, changes nothing.

        Raises:
            OSError: the tree itself could not be read; what concerns one device is a problem of the result.
        """

    @abstractmethod
    def watches(self, options: O, roots: Roots) -> Watches:
        """What to watch for `discover` to answer differently."""

    def parameters(self, raw: Mapping[str, object]) -> object:
        """Validate one opaque configuration of a claim or class.

        Raises:
            ParameterErrors: it is not acceptable.
        """
        raise ParameterErrors([FieldError("", f"devices of kind {self.name} take no parameters")])

    def claim_edits(self, device: Device, parameters: Sequence[object]) -> ContainerEdits:
        """Edits that a claim's configuration adds to the device's own.

        Args:
            device: the allocated device.
            parameters: what `parameters` returned, the class's before the claim's; later ones override.

        Returns:
            Empty where the static edits are enough.
        """
        return ContainerEdits()

    def in_use(self, device: Device, roots: Roots) -> bool | None:
        """Whether anybody uses the device now, holder or not; None where the device cannot tell. Blocks.

        Evidence on releases (kubelet-contract E.5): a device that is used although nobody is known to have it is not
        given to the next.

        Raises:
            OSError: it could tell, and cannot be read.
        """
        return None
