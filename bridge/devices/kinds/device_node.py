"""Kind `device-node`: device nodes by glob, each a device; or several nodes, or all, that make one device.

A part is a node's canonical path: device numbers change over a reboot, paths do not, and the same silicon
in two groups is then the same part. One hold uses 1 of `replicas`; without replicas 1 of 1, which is all of
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.devices.disks import Disks
from bridge.devices.kinds.base import Found, Kind, Watches
from bridge.devices.kinds.node_options import TOGETHER, DeviceNodeOptions, NamedDevice, NodeOptions
from bridge.devices.kinds.options import OwnerOptions, fill
from bridge.devices.model import (
    AttributeValue,
    ContainerEdits,
    Device,
    DeviceNode,
    Health,
    Problem,
    device_name,
    natural_key,
)
from bridge.devices.nodes import (
    Missing,
    Node,
    NoNode,
    Unusable,
    directories_of,
    expand,
    matches,
    numa_node,
    read_node,
)
from bridge.platform.roots import Roots

NUMA_ATTRIBUTE = "resource.kubernetes.io/numaNode"
"""The standard attribute of KEP 6072."""

LONGEST_TEXT = 64
"""Longest string attribute (kubelet-contract C.1)."""


class DeviceNodeKind(Kind[DeviceNodeOptions]):
    """Discovery of device nodes."""

    name = "device-node"
    options = DeviceNodeOptions

    def discover(self, group: str, options: DeviceNodeOptions, roots: Roots) -> Found:
        """One device for each node that `include` matches, and those written out."""
        search = _Search(group, options, roots)
        search.named()
        search.globbed()
        return search.found()

    def watches(self, options: DeviceNodeOptions, roots: Roots) -> Watches:
        """The directories of every pattern and path; those of `exclude` too, for it may name links."""
        paths = [*options.include, *options.exclude]
        paths += [node.path for device in options.devices for node in device.nodes]
        return Watches(frozenset().union(*(directories_of(path, roots) for path in paths)))


@dataclass(slots=True)
class _Search:
    """One discovery of one group: what it has found so far."""

    group: str
    options: DeviceNodeOptions
    roots: Roots
    devices: list[Device] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    identities: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    excluded: _Excluded = field(init=False)

    def __post_init__(self) -> None:
        self.excluded = _Excluded.read(self.options.exclude, self.roots)

    def found(self) -> Found:
        parts = {part: self.options.replicas for device in self.devices for part in device.parts}
        self._one_path_for_many()
        return Found(
            tuple(sorted(self.devices, key=lambda device: natural_key(device.name))),
            parts,
            tuple(self.problems),
            self.identities,
        )

    def named(self) -> None:
        """The devices written out; their nodes are not offered alone as well."""
        for wanted in self.options.devices:
            present: list[tuple[NodeOptions, Node]] = []
            missing: list[NodeOptions] = []
            try:
                for option in wanted.nodes:
                    node = self._node_of(option)
                    if node is not None:
                        present.append((option, node))
                    elif not option.optional:
                        missing.append(option)
            except Unusable as error:
                self._problem(wanted.name, f"{error}; device {wanted.name} is left out")
                continue
            finally:
                self.taken.update(node.path for _, node in present)
            self._add_named(wanted, present, missing)

    def _node_of(self, option: NodeOptions) -> Node | None:
        try:
            node = read_node(option.path, self.roots)
        except Missing:
            return None
        if self.excluded.matches(option.path) or self.excluded.leads(option.path, node):
            raise Unusable(f"{option.path} is excluded by exclude")
        return node

    def _add_named(
        self, wanted: NamedDevice, present: list[tuple[NodeOptions, Node]], missing: list[NodeOptions]
    ) -> None:
        absent = ", ".join(option.path for option in missing)
        if not present:
            self._problem(wanted.name, f"none of the nodes of device {wanted.name} exists; it is left out")
            return
        if missing:
            self._problem(wanted.name, f"device {wanted.name} is unhealthy: {absent} does not exist")
        edits = ContainerEdits(
            tuple(
                self._device_node(
                    node,
                    option.inside(wanted.name),
                    option.permissions or self.options.permissions,
                    option.owner or self.options.owner,
                )
                for option, node in present
            )
        )
        nodes = [node for _, node in present]
        health = Health(False, f"{absent} does not exist") if missing else Health()
        # Every path it may ever have is booked with it: an optional node that appears is then already its holder's.
        present_options = [option for option, _ in present]
        others = [option.path for option in wanted.nodes if option not in present_options]
        self._add(wanted.name, nodes, edits, health, others)

    def globbed(self) -> None:
        """Each node that a pattern matches, once, whatever names lead to it."""
        usable = self._usable()
        if self.options.together:
            self._together(usable)
            return
        for path, (node, matched) in usable.items():
            name = device_name(path.removeprefix("/dev/"))
            self._add(name, [node], ContainerEdits(tuple(self._globbed(node, name, matched))), Health(), [])

    def _together(self, usable: Mapping[str, tuple[Node, list[str]]]) -> None:
        """One device of all of them; of several that would be one path inside, the first."""
        inside: dict[str, tuple[Node, DeviceNode]] = {}
        for node, matched in usable.values():
            for one in self._globbed(node, TOGETHER, matched):
                first, _ = inside.setdefault(one.container_path, (node, one))
                if first is not node:
                    where = f"inside a container it would be {one.container_path}, as {first.path} is"
                    self._problem(node.path, f"{where}; it is left out")
        if inside:
            nodes = list({node.path: node for node, _ in inside.values()}.values())
            self._add(TOGETHER, nodes, ContainerEdits(tuple(one for _, one in inside.values())), Health(), [])

    def _usable(self) -> dict[str, tuple[Node, list[str]]]:
        """The nodes that patterns match, by their own paths, each with the paths that matched."""
        usable: dict[str, tuple[Node, list[str]]] = {}
        disks = Disks.read(self.roots) if self.options.type or self.options.spare else None
        for path in self._matched():
            try:
                node = read_node(path, self.roots)
            except Unusable as error:
                if isinstance(error, NoNode) and path not in self.options.include:
                    continue  # a wildcard asks for the nodes among what it meets
                if not isinstance(error, Missing) or self.roots.look(path).is_symlink():
                    self._problem(path, f"{error}; it is left out")
                continue
            if node.path in self.taken or self.excluded.leads(path, node):
                continue
            if disks is None or self._wanted(node, disks):
                usable.setdefault(node.path, (node, []))[1].append(path)
        return usable

    def _wanted(self, node: Node, disks: Disks) -> bool:
        """Whether it is of the type, and spare if it has to be. What is not, is no problem: nobody asked for it."""
        if self.options.type is not None and disks.is_block(node) != (self.options.type == "block"):
            return False
        return not self.options.spare or not disks.use_of(node)

    def _globbed(self, node: Node, name: str, matched: Sequence[str]) -> Iterator[DeviceNode]:
        """The node as a container sees it: at one path, or at each that led to it."""
        if self.options.as_matched:
            inside = list(matched)
        else:
            inside = [fill(self.options.container_path or node.path, name=name, path=node.path)]
        for path in inside:
            yield self._device_node(node, path, self.options.permissions, self.options.owner)

    def _matched(self) -> Iterator[str]:
        paths = {path for pattern in self.options.include for path in expand(pattern, self.roots)}
        yield from sorted(path for path in paths if not self.excluded.matches(path))

    def _add(
        self, name: str, nodes: list[Node], edits: ContainerEdits, health: Health, absent: list[str]
    ) -> None:
        numa = {number for node in nodes if (number := numa_node(node, self.roots)) is not None}
        agreed = numa.pop() if len(numa) == 1 else None
        for node in nodes:
            if node.identity is not None:
                self.identities[node.path] = node.identity
        self.devices.append(
            Device(
                group=self.group,
                name=name,
                kind=DeviceNodeKind.name,
                edits=edits,
                attributes=_attributes(nodes, agreed),
                numa_node=agreed,
                health=health,
                parts=dict.fromkeys([*(node.path for node in nodes), *absent], 1),
                shares=self.options.replicas,
                share_unit="replicas",
            )
        )

    def _device_node(
        self, node: Node, inside: str, permissions: str, owner: OwnerOptions | None
    ) -> DeviceNode:
        return DeviceNode(
            host_path=self.roots.on_host(node.path),
            container_path=inside,
            permissions=permissions,
            type=node.type,
            major=node.major,
            minor=node.minor,
            owner=owner.owner() if owner else None,
        )

    def _one_path_for_many(self) -> None:
        template = self.options.container_path
        single = [
            device for device in self.devices if [n.container_path for n in device.edits.nodes] == [template]
        ]
        if len(single) > 1:
            self._problem(
                template or "",
                f"{len(single)} devices are all {template} inside a container: one that gets several "
                "of them sees only one; write {name} or {basename} in containerPath",
            )

    def _problem(self, subject: str, message: str) -> None:
        self.problems.append(Problem(self.group, subject, message))


@dataclass(frozen=True, slots=True)
class _Excluded:
    """What `exclude` names: by pattern, by where its links lead, and by what the kernel knows it as.

    An excluded disk stays excluded under every name: that of a link, and that of a second node with its
    numbers.
    """

    patterns: tuple[str, ...]
    paths: frozenset[str]
    identities: frozenset[str]

    @classmethod
    def read(cls, patterns: tuple[str, ...], roots: Roots) -> _Excluded:
        nodes: list[Node] = []
        for path in {path for pattern in patterns for path in expand(pattern, roots)}:
            try:
                nodes.append(read_node(path, roots))
            except Unusable:
                continue  # what is no device needs no excluding
        return cls(
            patterns,
            frozenset(node.path for node in nodes),
            frozenset(node.identity for node in nodes if node.identity is not None),
        )

    def matches(self, path: str) -> bool:
        return any(matches(path, pattern) for pattern in self.patterns)

    def leads(self, path: str, node: Node) -> bool:
        """Whether a path that no pattern matches leads to an excluded node all the same."""
        return bool(self.patterns) and (
            node.path in self.paths
            or node.identity in self.identities
            or (node.path != path and self.matches(node.path))
        )


def _attributes(nodes: list[Node], numa: int | None) -> Mapping[str, AttributeValue]:
    first = nodes[0]
    attributes: dict[str, AttributeValue] = {}
    if len(first.path) <= LONGEST_TEXT:
        attributes["path"] = first.path
    if len(nodes) > 1:
        attributes["nodes"] = len(nodes)
    if first.type is not None and first.major is not None and first.minor is not None:
        attributes |= {"type": first.type, "major": first.major, "minor": first.minor}
    if numa is not None:
        attributes[NUMA_ATTRIBUTE] = numa
    return attributes
