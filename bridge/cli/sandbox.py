"""`bridge sandbox`: the tour through a simulated node."""

from __future__ import annotations

from typing import Annotated

import typer

from bridge.cli.common import fail


def sandbox(
    keep: Annotated[bool, typer.Option("--keep", help="Keep running after the tour, until Ctrl-C.")] = False,
) -> None:
    """Tour the bridge on a simulated node: no root, no cluster, nothing left behind.

    Example: bridge sandbox
    """
    try:
        from bridge.sandbox.tour import tour
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        fail("the simulated node needs aiohttp, which is not installed; pip install 'device-bridge[sandbox]'")

    import asyncio

    raise typer.Exit(asyncio.run(tour(keep=keep)))
