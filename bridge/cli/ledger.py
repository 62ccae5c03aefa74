"""`bridge ledger`: is it sound, and what is in it. Read-only, beside a running daemon."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from bridge.cli.common import DEFAULT_CONFIG, ConfigOption, Output, OutputOption, dump, fail, load_config
from bridge.cli.problems import Commands

app = typer.Typer(cls=Commands, help="Check and export the ledger.", no_args_is_help=True)


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.TABLE) -> None:
    """Say whether the ledger is sound: schema, integrity, parts booked for what their holds use, every row readable.

    Exit 0: sound; 1: there is none, it is damaged or of a newer version, with what to do; 2: the configuration is
    wrong.

    Example: bridge ledger check --config config.yaml
    """
    from bridge.ledger.store import LedgerError, LedgerFromTheFuture, examine

    folder = load_config(config).daemon.state_dir
    try:
        found = examine(folder)
    except LedgerFromTheFuture as error:
        fail(str(error))
    except LedgerError as error:
        fail(f"{error}; {mend(folder)}")
    if output is not Output.TABLE:
        dump(output, asdict(found))
        return
    typer.echo(
        f"{found.path}: sound; schema {found.schema}, {found.holds} holds on {found.parts} parts, "
        f"{found.claims} prepared claims, {found.quarantines} quarantines, {found.records} records"
    )
    for aside in found.set_aside:
        typer.echo(f"note: an earlier, damaged one is kept as {aside}", err=True)


def mend(folder: Path) -> str:
    """What to do about a ledger that cannot be used."""
    if not (folder / "ledger.db").exists():
        return (
            "start the daemon, which makes one; or let daemon.stateDir name the folder of the one that runs"
        )
    return (
        f"keep a copy of {folder}. A daemon that starts on it sets it aside and quarantines everything: drain the "
        f"node, start it, then start it once with --accept-empty-ledger"
    )


@app.command()
def export(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.JSON,
) -> None:
    """Print all of the ledger: holds, prepared claims, quarantines, modes, and what was done to it by force.

    Exit 0: printed; 1: it cannot be read; 2: the configuration is wrong.

    Example: bridge ledger export --config config.yaml > ledger.json
    """
    from bridge.ledger.store import LedgerError, examine, read_account, read_records

    folder = load_config(config).daemon.state_dir
    try:
        schema, account, records = examine(folder).schema, read_account(folder), read_records(folder)
    except LedgerError as error:
        fail(str(error))
    everything = {
        "schema": schema,
        "holds": [asdict(hold) for hold in account],
        "claims": [asdict(claim) for claim in account.prepared_claims()],
        "quarantines": [asdict(quarantine) for quarantine in account.quarantines()],
        "switches": [asdict(switch) for switch in account.switches()],
        "records": [asdict(record) for record in records],
    }
    dump(Output.JSON if output is Output.TABLE else output, everything)
