"""Lint: whatever writes state or sends an answer does it in a function that names a crash point.

`python -m tests.lint.points` (part of `make lint`) reads the daemon's packages as syntax trees. What counts as a write
or a send is the data below; what it excuses says why. It also holds the points themselves to their promise: each one
is named in exactly one function, so that its name says where the process died.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("bridge", "dra_v1", "deviceplugin_v1beta1")
ELSEWHERE = (
    "bridge/cli/",
    "bridge/sandbox/",
    "bridge/platform/api/",
    "dra_v1/api/",
    "deviceplugin_v1beta1/api/",
)
"""Not of the daemon, or generated."""

POINTS = "dra_v1/points.py"

METHODS = {
    # pathlib and open files
    "rename", "unlink", "rmdir", "mkdir", "touch", "write_text", "write_bytes", "symlink_to", "hardlink_to", "write",
    "writelines", "truncate",
    # sockets
    "bind", "add_insecure_port", "add_secure_port", "start_unix_server", "start_server",
    "create_unix_server", "send", "sendall", "sendto", "sendmsg",
    # the one call that a device plugin makes
    "Register",
}  # fmt: skip
"""Methods that write or send, whatever they are called on."""

OS_CALLS = {
    "fsync", "fdatasync", "write", "pwrite", "writev", "truncate", "ftruncate", "rename", "renames", "replace",
    "unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "link", "symlink", "mknod", "mkfifo",
    "rmtree", "move", "copy", "copy2", "copyfile", "copytree",
}  # fmt: skip
"""Functions of `os` and `shutil`."""

KUBE = {"create", "replace", "patch", "delete"}
"""Writing methods of `dra_v1.kube.KubeApi`: told from others of these names by `await`, or by an `api` before them."""

SQL = {"execute", "executescript", "executemany"}
SQL_WRITES = (
    "INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER", "COMMIT", "VACUUM", "PRAGMA USER_VERSION=",
)  # fmt: skip
"""Statements that change the file. Those that only change it with a later COMMIT are excused below."""

_IN_TRANSACTION = "part of the transaction of Store.write or of a file that is renamed later"
_WIRE = "the wire under KubeApi: requests that write are named where they are made"

EXCUSED: Mapping[tuple[str, str], str] = {
    ("bridge/ledger/rows.py", "write"): _IN_TRANSACTION,
    ("bridge/ledger/rows.py", "_put_hold"): _IN_TRANSACTION,
    ("bridge/ledger/rows.py", "create"): _IN_TRANSACTION,
    (
        "bridge/ledger/store.py",
        "_sync",
    ): "makes last what its caller has written, between the caller's points",
    (
        "bridge/daemon/follow.py",
        "_take",
    ): "writes CDI files through bridge.platform.cdi, which names the points",
    ("bridge/platform/rights.py", "_has"): "asks what this daemon may do: nothing is stored",
    ("dra_v1/sockets.py", "_hidden"): "removes what its caller would have, between the caller's points",
    ("bridge/platform/uevents.py", "_open"): "a netlink socket, which only hears",
    ("bridge/daemon/http.py", "_answer"): "metrics and probes: nothing is handed out by them",
    ("dra_v1/http.py", "*"): _WIRE,
    ("dra_v1/wire.py", "*"): _WIRE,
    (
        "dra_v1/kube_config.py",
        "_load_client_certificate",
    ): "private files for OpenSSL, gone when it has read them",
}
"""(file, function or `*`) and why it needs no point."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place that is wrong, and what to do."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class _Named:
    """A point passed to the hook."""

    point: str
    file: str
    function: str
    line: int


def check(sources: Mapping[str, str], excused: Mapping[tuple[str, str], str] = EXCUSED) -> list[Finding]:
    """What is wrong in sources by file name; `POINTS` among them, for the names of the points. Pure."""
    findings: list[Finding] = []
    named: list[_Named] = []
    used: set[tuple[str, str]] = set()
    for file, source in sources.items():
        if file == POINTS:
            continue
        tree = ast.parse(source)
        findings += _imported(file, tree)
        named += [_Named(point, file, function, line) for point, function, line in _named(tree)]
        for function, line, what in _unnamed(tree):
            keys = [(file, function), (file, "*")]
            if found := [key for key in keys if key in excused]:
                used.update(found)
            else:
                findings.append(Finding(file, line, _advice(what, function)))
    findings += [
        Finding(f, 0, f"{name} is excused and needs no excuse") for f, name in sorted({*excused} - used)
    ]
    return sorted([*findings, *_points(_enum(sources[POINTS]), named)])


def _advice(what: str, function: str) -> str:
    return (
        f"{what} in {function or 'the module'}, which names no crash point: put `points.reached(points.Point.…)` "
        f"before and after it, the point into {POINTS}, and a visit to it into tests/crash/visits.py"
    )


def _imported(file: str, tree: ast.Module) -> Iterator[Finding]:
    """The hook is replaced in its module: whoever took it out of there before would not notice."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dra_v1.points":
            yield Finding(
                file, node.lineno, "write `from dra_v1 import points`, so that tests can replace the hook"
            )


def _points(declared: Mapping[str, int], named: list[_Named]) -> Iterator[Finding]:
    for one in named:
        if one.point not in declared:
            yield Finding(one.file, one.line, f"{POINTS} has no point {one.point}")
    for point, line in declared.items():
        places = {(one.file, one.function) for one in named if one.point == point}
        if len(places) != 1:
            where = ", ".join(f"{file} {function}" for file, function in sorted(places)) or "nowhere"
            yield Finding(POINTS, line, f"{point} is named {where}, and has to be in one function")


def _enum(source: str) -> dict[str, int]:
    """Members of `Point` and their lines."""
    (body,) = (n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Point")
    return {
        target.id: node.lineno
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _named(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str, int]]:
    """Points that a tree passes to the hook, with function and line."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "points.reached":
            for argument in node.args:
                yield ast.unparse(argument).removeprefix("points.Point."), function, node.lineno
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from _named(node, inside)


def _unnamed(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(function, line, what) of each write or send outside the functions that name a point."""
    for function, node in _outside(tree, ""):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield function, node.lineno, f"the answer of {node.name}"
        elif isinstance(node, ast.Call) and (what := _writes(node)):
            yield function, node.lineno, what
        elif isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            method = node.value.func
            if isinstance(method, ast.Attribute) and method.attr in KUBE and not _is_api(method.value):
                yield function, node.lineno, f"await {ast.unparse(method)}()"


def _outside(tree: ast.AST, function: str, servicer: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """Every node that no function with a point encloses, with the function it is in; of a gRPC servicer's answers
    the functions themselves."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_named(node)):
                continue
            if (
                servicer
                and not node.name.startswith("_")
                and not node.decorator_list
                and node.name[0].isupper()
            ):
                yield node.name, node
            yield from _outside(node, node.name)
        elif isinstance(node, ast.ClassDef):
            yield from _outside(node, function, any(ast.unparse(b).endswith("Servicer") for b in node.bases))
        else:
            yield function, node
            yield from _outside(node, function, servicer)


def _writes(call: ast.Call) -> str:
    """What a call writes or sends, in words; empty if it does neither."""
    name = ast.unparse(call.func)
    match call.func:
        case ast.Name("open") if _writing_mode(call, 1):
            return "open() for writing"
        case ast.Attribute(ast.Name("os" | "shutil"), attr):
            opened = attr == "open" and any(f in ast.unparse(call) for f in ("O_WRONLY", "O_RDWR", "O_CREAT"))
            return f"{name}()" if attr in OS_CALLS or opened else ""
        case ast.Attribute(_, "open") if _writing_mode(call, 0):
            return f"{name}() for writing"
        case ast.Attribute(_, "replace") if len(call.args) == 1 and not call.keywords:
            return f"{name}()"
        case ast.Attribute(owner, attr) if attr in METHODS or (attr in KUBE and _is_api(owner)):
            return f"{name}()"
        case ast.Attribute(_, attr) if attr in SQL and (statement := _sql(call)):
            return f"{name}({statement!r})"
    return ""


def _is_api(owner: ast.expr) -> bool:
    return ast.unparse(owner).rpartition(".")[2].lstrip("_") in ("api", "kube")


def _writing_mode(call: ast.Call, position: int) -> bool:
    modes = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(m, ast.Constant) and set(str(m.value)) & set("wax+") for m in modes)


def _sql(call: ast.Call) -> str:
    """The first words of a statement that writes; a statement that is not written out here might."""
    match call.args[:1]:
        case [ast.Constant(str(text))]:
            statement = text
        case [ast.JoinedStr(values)]:
            statement = "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values)
        case [other]:
            return "" if ast.unparse(other).startswith("_SELECT") else ast.unparse(other)
        case _:
            return ""
    upper = " ".join(statement.upper().split())
    writes = upper.startswith(SQL_WRITES) or "COMMIT" in upper
    return " ".join(statement.split()[:3]) if writes else ""


def sources(root: Path = ROOT) -> dict[str, str]:
    """The daemon's sources by name."""
    return {
        name: path.read_text()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if not (name := path.relative_to(root).as_posix()).startswith(ELSEWHERE)
    }


def main() -> int:
    """Print findings; 1 if there are any."""
    findings = check(sources())
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
