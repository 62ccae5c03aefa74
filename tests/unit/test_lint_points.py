"""The lint of crash points goes red on what it is for, and is silent on the daemon as it is."""

from __future__ import annotations

import textwrap

import pytest

from tests.lint import points

DECLARED = "class Point:\n    HERE = auto()\n    THERE = auto()\n"


def findings(code: str, declared: str = DECLARED) -> list[str]:
    """What it finds in a file of the daemon that names both points besides."""
    named = "def named():\n    points.reached(points.Point.HERE)\n    points.reached(points.Point.THERE)\n"
    sources = {points.POINTS: declared, "bridge/x.py": textwrap.dedent(code), "bridge/named.py": named}
    return [str(finding) for finding in points.check(sources, {})]


def test_the_daemon_passes() -> None:
    assert points.check(points.sources()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "path.rename(other)",
        "aside.replace(path)",
        "path.unlink(missing_ok=True)",
        "path.write_text(text)",
        "path.write_bytes(data)",
        "path.mkdir()",
        "path.open('wb')",
        "open(path, mode='a')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "os.fsync(fd)",
        "os.pwrite(fd, data, 0)",
        "shutil.rmtree(path)",
        "db.execute('COMMIT')",
        "db.execute('insert into holds values (1)')",
        "db.execute(statement)",
        "db.executescript(f'BEGIN; {more} COMMIT;')",
        "channel.bind(address)",
        "server.add_insecure_port(target)",
        "writer.write(answer)",
        "stub.Register(request)",
        "self._api.create(path, body)",
        "asyncio.gather(api.delete(path))",
    ],
)
def test_a_write_or_a_send_without_a_point_is_found(statement: str) -> None:
    (found,) = findings(f"def f():\n    {statement}\n")
    assert found.startswith("bridge/x.py:2: ") and "in f, which names no crash point" in found
    assert "tests/crash/visits.py" in found
    assert findings(f"def f():\n    points.reached(points.Point.HERE)\n    {statement}\n", DECLARED) != [], (
        "named twice"
    )


def test_an_awaited_write_to_the_api_server_is_found_whatever_it_is_called_on() -> None:
    (found,) = findings("async def f():\n    await self._pods.patch(path, body)\n")
    assert found.startswith("bridge/x.py:2: await self._pods.patch()")


@pytest.mark.parametrize(
    "statement",
    [
        "text.replace('a', 'b')",
        "replace(status, stored=True)",
        "moment.replace(tzinfo=UTC)",
        "path.open('rb')",
        "os.open(path, os.O_RDONLY)",
        "db.execute('SELECT id FROM holds')",
        "db.execute(_SELECT_HOLDS)",
        "names.create(group)",
    ],
)
def test_what_only_looks_like_a_write_is_let_be(statement: str) -> None:
    assert findings(f"def f():\n    {statement}\n") == []


def test_an_answer_of_a_servicer_without_a_point_is_found() -> None:
    code = """
    class Service(pb_grpc.DevicePluginServicer):
        async def Allocate(self, request, context):
            return answer

        async def _helps(self):
            return answer
    """
    (found,) = findings(code)
    assert found.startswith("bridge/x.py:3: the answer of Allocate in Allocate")


def test_a_write_in_a_function_within_is_covered_by_the_function_around_it() -> None:
    code = """
    def f():
        def write():
            path.unlink()

        points.reached(points.Point.HERE)
        write()
    """
    assert [text for text in findings(code) if "x.py" in text and "unlink" in text] == []


def test_each_point_is_named_in_one_function_only() -> None:
    twice = findings("def f():\n    points.reached(points.Point.HERE)\n")
    assert twice == [
        f"{points.POINTS}:2: HERE is named bridge/named.py named, bridge/x.py f, and has to be in one function"
    ]
    never = findings("", DECLARED + "    NOWHERE = auto()\n")
    assert never == [f"{points.POINTS}:4: NOWHERE is named nowhere, and has to be in one function"]
    unknown = findings("def f():\n    points.reached(points.Point.ELSEWHERE)\n")
    assert unknown == [f"bridge/x.py:2: {points.POINTS} has no point ELSEWHERE"]


def test_the_hook_is_not_taken_out_of_its_module() -> None:
    (found,) = findings("from dra_v1.points import reached\n")
    assert "so that tests can replace the hook" in found


def test_an_excuse_that_nobody_needs_is_found() -> None:
    sources = {points.POINTS: "class Point:\n    pass\n", "bridge/x.py": "def f():\n    path.unlink()\n"}
    assert points.check(sources, {("bridge/x.py", "f"): "because"}) == []
    (found,) = points.check(sources, {("bridge/x.py", "*"): "because", ("bridge/y.py", "g"): "because"})
    assert str(found) == "bridge/y.py:0: g is excused and needs no excuse"
