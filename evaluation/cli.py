"""The ``gradguard`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer

from gradguard.evaluation.commands import audit, evaluate, wire
from gradguard.evaluation.errors import UnusableInputError, one_line

UNUSABLE = 2

COMMANDS: dict[str, Callable[..., None]] = {
    "evaluate": evaluate.command,
    "audit": audit.command,
    "wire": wire.command,
}
"""In the order of the help."""

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


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


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
