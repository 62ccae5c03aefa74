"""A switch as the command line asks for it: which nodes, how, and what to say when it stops."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer

from bridge.cli.fleet.batches import batches, size
from bridge.cli.fleet.cluster import Cluster, ClusterError, Object
from bridge.cli.fleet.journey import Leg, Report, Result, back, forth
from bridge.cli.fleet.marks import Ask
from bridge.cli.fleet.nodes import chosen, daemons, name_of
from bridge.cli.fleet.progress import shown
from bridge.cli.fleet.rollout import Pace, Rollout, stands
from bridge.cli.fleet.states import State
from bridge.cli.fleet.watching import Bridges, NoBridges
from bridge.cli.problems import Problem

_DEFAULTS = {"--pause": 0.0, "--timeout": 300.0, "--patience": 30.0}


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for.

    Attributes:
        mode: to go to; empty: undo the last switch.
        times: seconds, by option.
    """

    mode: str
    nodes: tuple[str, ...]
    selector: str
    group: str
    batch: str
    times: Mapping[str, float]
    wait: bool
    ask: Ask
    kubeconfig: str
    context: str

    @property
    def pace(self) -> Pace:
        """How long is waited for what."""
        times = self.times
        return Pace(times["--timeout"], times["--patience"], times["--pause"], self.wait)

    @property
    def again(self) -> str:
        """The command that goes on."""
        more = [] if self.batch == "1" else ["--batch", self.batch]
        for option, value in self.times.items():
            more += [] if value == _DEFAULTS[option] else [option, f"{value:g}s"]
        more += [] if self.wait else ["--no-wait"]
        more += ["--wait-for-holders"] if self.ask.wait_for_holders else []
        more += ["--accept-stranded-pods"] if self.ask.accept_stranded_pods else []
        return shlex.join(["bridge", "mode", "set", self.mode or "--undo", *self._scope, *more])

    @property
    def undo(self) -> str:
        """The command that goes back."""
        return shlex.join(["bridge", "mode", "set", "--undo", *self._scope])

    @property
    def _scope(self) -> list[str]:
        scope = [text for one in self.nodes for text in ("--node", one)]
        for option in ("selector", "group", "kubeconfig", "context"):
            value = getattr(self, option)
            scope += [f"--{option}", value] if value else []
        return scope


def switch(cluster: Cluster, order: Order, *, dry_run: bool) -> Report:
    """Do it, and say how far it came. Raises Problem, which says the same where it could not go on."""
    legs, states = _legs(cluster, order)
    _tell_price(order, states, [leg.node for leg in legs])
    with shown() as progress:
        rollout = Rollout(cluster, legs, order.pace, progress)
        todo = rollout.left(legs, states)
        if dry_run:
            for leg in todo:
                rollout.report.rows[leg.node].result = Result.WOULD
            return rollout.report
        try:
            return rollout.run(batches(todo, size(order.batch, len(legs))))
        except KeyboardInterrupt:
            text = f"interrupted; {stands(rollout.report, order.again, order.undo)}"
            raise Problem(text, 130) from None
        except ClusterError as error:
            text = f"{error}\n{stands(rollout.report, order.again, order.undo)}"
            raise Problem(text, error.code) from error


def _legs(cluster: Cluster, order: Order) -> tuple[list[Leg], Mapping[str, State]]:
    nodes = chosen(cluster, order.nodes, order.selector)
    states: Mapping[str, State] = {}
    try:
        states = Bridges(cluster).read()
    except NoBridges as error:
        if order.wait:
            raise Problem(
                f"the nodes cannot be waited for: {error}. With --no-wait the labels are set all the same, and nobody "
                "checks"
            ) from error
    nodes = _fit(cluster, nodes, states, order)
    if not order.mode:
        return back(nodes, states, order.group), states
    now = datetime.datetime.now(datetime.UTC)
    return forth(nodes, states, order.mode, order.group, order.ask, now), states


def _fit(
    cluster: Cluster, nodes: Sequence[Object], states: Mapping[str, State], order: Order
) -> list[Object]:
    """The nodes that this can be about: with a daemon, and with the group; what is left out is said."""
    with_daemon = set(states) or set(daemons(cluster))
    fit: list[Object] = []
    without: list[str] = []
    for one in nodes:
        name, now = name_of(one), states.get(name_of(one))
        has = name in with_daemon and (now is None or not order.group or now.group(order.group) is not None)
        if has or (order.nodes and not order.wait):
            fit.append(one)
        else:
            without.append(name)
    lack = f"no daemon there serves a group {order.group}" if order.group else "no daemon has reported there"
    if order.nodes and without:
        raise Problem(f"{some(without)}: {lack}; `bridge status` shows what there is", 2)
    if not fit:
        does = f"does a daemon serve a group {order.group}" if order.group else "has a daemon reported"
        raise Problem(f"on none of the chosen nodes {does}; `bridge status` shows what there is", 2)
    if without and (order.selector or order.group):
        typer.echo(f"bridge: left out, {lack}: {some(without)}", err=True)
    return fit


def _tell_price(order: Order, states: Mapping[str, State], nodes: Sequence[str]) -> None:
    """What a node in `dra` shows of pods that have devices from the device plugin still: a switch waits for allocatable
    0, not for them."""
    if order.mode != "dra" or order.ask.wait_for_holders:
        return
    going = [name for name in nodes if name in states and states[name].mode != order.mode]
    held = {name: count for name in going if (count := states[name].held.get("devicePlugin", 0))}
    if held:
        typer.echo(
            f"bridge: note: pods have {sum(held.values())} devices from the device plugin on {some(list(held))}. They "
            "keep them. "
            "Where the resource name is the same on both planes, such a device is shown as unhealthy until its pod "
            "ends, and a pod that the kubelet has to admit again after a reboot is replaced by its controller; "
            "--wait-for-holders avoids that",
            err=True,
        )


def some(names: Sequence[str], shown: int = 8) -> str:
    """Names for people: the first few, and how many more."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
