import subprocess
import sys

LOADED = """
import runpy, sys
sys.argv = ["daemon", "not settings"]
try:
    runpy.run_module("bridge.daemon", run_name="__main__")
except ValueError:
    pass
print(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_daemon_loads_nothing_that_only_the_command_line_needs() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"aiohttp", "kubernetes", "pydantic", "typer", "rich", "click"} & set(done.stdout.split())
