"""The command line: build the programs of a node, boot one, look at those that run, end them."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import build, cache, consoles, images, packages, pin, running
from tests.cluster.cluster import Cluster
from tests.cluster.versions import DEFAULT, RELEASES, release

_REPOSITORY = Path(__file__).parents[2]
_DEVICES = "/dev/bridge-test"
_MOST_DEVICES = consoles.LAST - consoles.FIRST + 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        below = commands.add_parser(name, help=text, description=text)
        below.set_defaults(run=run)
        return below

    command("install-packages", _install, "install the Debian packages that are missing (needs root)")
    for below in (
        command("build", _build, "build the programs of a node; minutes when cold, nothing when cached"),
        command("up", _up, "boot a node and keep it until Ctrl-C (needs root)"),
    ):
        wanted = os.environ.get("K8S") or DEFAULT
        text = "Kubernetes release, or $K8S (%(default)s)"
        below.add_argument("--k8s", default=wanted, choices=RELEASES, help=text)
    text = f"device nodes to make in {_DEVICES} (%(default)s)"
    below.add_argument("--devices", type=int, default=4, metavar="N", help=text)
    below.add_argument("--detach", action="store_true", help="return once it is ready, and leave it running")
    below = command("pin", _pin, "write the Go module of one more release (then add it to versions.py)")
    below.add_argument("version")
    command("status", _status, "list the nodes that run")
    down = command("down", _down, "end nodes")
    down.add_argument("pid", nargs="*", type=int, help="as `status` shows them; all without one")
    return parser


def _install(_: argparse.Namespace) -> int:
    print("installed:", " ".join(packages.install()) or "nothing, all were there")
    return 0


def _build(options: argparse.Namespace) -> int:
    for folder in (build.kubernetes(release(options.k8s)), build.runtime(), images.archive().parent):
        print(folder)
    return 0


def _pin(options: argparse.Namespace) -> int:
    print(pin.pin(options.version))
    return 0


def _up(options: argparse.Namespace) -> int:
    if not 0 <= options.devices <= _MOST_DEVICES:
        print(f"--devices must be between 0 and {_MOST_DEVICES}", file=sys.stderr)
        return 2
    return _detach(options) if options.detach else _hold(options)


def _hold(options: argparse.Namespace) -> int:
    """Boot a node and keep it until this process is told to end."""
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    begun = time.monotonic()
    for number in ends:
        signal.signal(number, _interrupt)
    try:
        with Cluster(options.k8s) as cluster:
            for index in range(options.devices):
                cluster.mknod(f"{_DEVICES}/dev{index}", "c", consoles.MAJOR, consoles.FIRST + index)
            _write_entry(cluster)
            entry = running.record(cluster.version, cluster.workdir)
            print(f"ready after {time.monotonic() - begun:.1f} s\n{_usage(entry)}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        running.forget(os.getpid())
    return 0


def _interrupt(number: int, _frame: object) -> None:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # ending takes a moment, and must not be ended itself
    raise KeyboardInterrupt(number)


def _detach(options: argparse.Namespace) -> int:
    """Boot a node in a process of its own and return when it is ready."""
    command = [sys.executable, "-m", "tests.cluster", "up"]
    command += ["--k8s", options.k8s, "--devices", str(options.devices)]
    # A file, not a pipe: the holder goes on after this process has ended.
    log = cache.root() / "running" / f"{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        holder = subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while holder.poll() is None:
        if entry := running.find(holder.pid):
            log.unlink()
            print(_usage(entry))
            return 0
        time.sleep(0.1)
    print(log.read_text(), file=sys.stderr)
    log.unlink()
    return 1


def _status(_: argparse.Namespace) -> int:
    entries = list(running.every())
    for entry in entries:
        print(f"pid {entry.pid}  Kubernetes {entry.version}  {entry.workdir}")
    if not entries:
        print("no node runs")
    return 0


def _down(options: argparse.Namespace) -> int:
    for entry in running.every():
        if options.pid and entry.pid not in options.pid:
            continue
        os.kill(entry.pid, signal.SIGTERM)
        while entry.alive():
            time.sleep(0.05)
        print(f"ended {entry.pid}")
    return 0


def _write_entry(cluster: Cluster) -> None:
    """Leave a script that runs a program inside the node, ready for kubectl."""
    path = ":".join(map(str, cluster.node.path))
    environment = [f"KUBECONFIG={cluster.admin_kubeconfig}", f"PATH={path}:/usr/sbin:/usr/bin:/sbin:/bin"]
    entry = shlex.join(cluster.node.enter(["env", *environment]))
    script = cluster.workdir / "enter"
    script.write_text(f'#!/bin/sh\n[ $# -gt 0 ] || set -- bash\nexec {entry} "$@"\n')
    script.chmod(0o755)


def _usage(entry: running.Running) -> str:
    enter = f"{entry.workdir}/enter"
    return f"""
Kubernetes {entry.version}, one node `node0`, in namespaces of its own.
  a shell in it    {enter}
  kubectl          {enter} kubectl get nodes        (KUBECONFIG={entry.workdir}/admin.kubeconfig, inside only)
  devices          {enter} ls -l {_DEVICES}         (mknod and rm inside are hot-plug and unplug)
  kubelet's paths  {entry.workdir}/root/var/lib/kubelet
  logs             {entry.workdir}/logs
  stop             python -m tests.cluster down {entry.pid}     (or Ctrl-C where it runs in the foreground)"""


if __name__ == "__main__":
    sys.exit(main())
