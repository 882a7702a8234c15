"""The ``gradguard`` command."""

from __future__ import annotations

import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from gradguard.evaluation.commands.evaluate import INTERRUPTED, run_evaluate
from gradguard.evaluation.commands.wire import MAX_BYTES, ROWS, run_wire
from gradguard.evaluation.errors import UnusableInputError, one_line

UNUSABLE = 2

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Defend the gradients a client sends, and attack that very defence first.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradguard {metadata.version('gradguard')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Defend the gradients a client sends, and attack that very defence first."""


@app.command()
def evaluate(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.toml]", help="Default: a study of its own.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="An .npz with uint8 images and integer labels.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="A function that makes a model.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("gradguard-report"),
    seed: Annotated[int | None, typer.Option(help="Decides every draw of the study.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes to work in. Default: one per core, at most 4.")
    ] = None,
) -> None:
    """Attack every defence of a study; report what leaks and what hiding it costs."""
    # A time limit of a batch system comes as SIGTERM: keep the finished rows, as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = run_evaluate(study, data=data, model=model, out=out, seed=seed, jobs=jobs)
    except KeyboardInterrupt:
        # Caught here: typer would turn it into an exit without a word.
        typer.echo(
            "gradguard: interrupted before a row was finished; nothing was written", err=True
        )
        code = INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(code)


@app.command()
def audit(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.toml]", help="Default: the study of evaluate.")
    ] = None,
    defense: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the defence of this name.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="An .npz with uint8 images and integer labels.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="A function that makes a model.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Messages with and without each canary.")] = 2000,
    alpha: Annotated[
        float, typer.Option(help="Chance that a claim that holds is refuted, over all audits.")
    ] = 0.05,
    seed: Annotated[int | None, typer.Option(help="Decides every draw of the audit.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write this.")] = None,
) -> None:
    """Try to refute what DP defences claim. Exit code 1: a claim is refuted."""
    # Opacus takes seconds to load, and other commands may do without it.
    from gradguard.evaluation.commands.audit import run_audit

    try:
        code = run_audit(
            study,
            defense=defense,
            data=data,
            model=model,
            draws=draws,
            alpha=alpha,
            seed=seed,
            out=out,
        )
    except KeyboardInterrupt:
        typer.echo("gradguard: interrupted; nothing was written", err=True)
        code = INTERRUPTED
    raise typer.Exit(code)


@app.command()
def wire(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One encoded message.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all tensors.")] = False,
    rows: Annotated[int, typer.Option(help="Show so many tensors, the largest.")] = ROWS,
    max_bytes: Annotated[int, typer.Option(help="Refuse a larger file.")] = MAX_BYTES,
) -> None:
    """List what an encoded message holds, tensor by tensor, without decoding it."""
    raise typer.Exit(run_wire(file, as_json=as_json, rows=rows, max_bytes=max_bytes))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="gradguard", standalone_mode=False)
    except UnusableInputError as error:
        _fail(one_line(error), UNUSABLE)
    except Exception as error:
        # Usage errors are typer's own type; the rest is a defect and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{one_line(Exception(error.format_message()))} (see gradguard --help)", UNUSABLE)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"gradguard: {message}", file=sys.stderr)
    sys.exit(code)
