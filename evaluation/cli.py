"""The ``gradguard`` command."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import metadata
from textwrap import wrap
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand

from gradguard.evaluation.commands import (
    audit,
    compare,
    evaluate,
    gate,
    report,
    scan,
    search,
    wire,
)
from gradguard.evaluation.errors import UnusableInputError, one_line, printable

UNUSABLE = 2

COMMANDS: dict[str, Callable[..., None]] = {
    "evaluate": evaluate.command,
    "search": search.command,
    "report": report.command,
    "gate": gate.command,
    "compare": compare.command,
    "audit": audit.command,
    "scan": scan.command,
    "wire": wire.command,
}
"""In the order of the help."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "evaluate": (
        "gradguard evaluate",
        "gradguard evaluate study.toml --out results --jobs 2",
        "gradguard evaluate --data mine.npz --model my_models:make",
        "gradguard evaluate study.toml --observed recording --defense top-k",
    ),
    "search": (
        "gradguard search study.toml --trials 80 --jobs 2",
        "gradguard search study.toml --max-advantage 0.2 --min-accuracy 0.8",
        "gradguard search study.toml --resume --max-bytes 10000",
    ),
    "report": ("gradguard report results", "gradguard report results --markdown"),
    "gate": (
        "gradguard gate results --defense sign --max-advantage 0.2",
        "gradguard gate results --defense dp --max-advantage 0.2 --min-accuracy 0.8",
        "gradguard gate results --defense dp --max-advantage 0.2 --format github",
    ),
    "compare": ("gradguard compare old/report.json new/report.json --format json",),
    "audit": ("gradguard audit study.toml --defense dp --draws 500",),
    "scan": (
        "gradguard scan update.npz --model nets:make --batch-size 8 --data auxiliary.npz",
        "gradguard scan update.pt --model nets:make --weights before.pt --batch-size 1 "
        "--classes 10 --input-shape 1,28,28",
        "gradguard scan update.pt --model nets:make --batch-size 8 --data auxiliary.npz "
        "--defense study.toml:sign",
    ),
    "wire": ("gradguard wire message.bin", "gradguard wire message.bin --json"),
}
"""Shown at the end of each command's help; a test parses them."""

app = typer.Typer(
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


class Plain(TyperCommand):
    """A command whose help has no backslash before a bracket, which typer puts there for rich."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")


def _epilog(name: str) -> str:
    # The mark at its head keeps click from filling the lines into a paragraph, and from breaking
    # a long one: that is broken here, as a shell has it.
    examples = (wrap(line, 68, break_on_hyphens=False) for line in EXAMPLES.get(name, ()))
    lines = ["  " + " \\\n      ".join(parts) for parts in examples]
    return "\n".join(["\b\nExamples:", *lines])


for _name, _command in COMMANDS.items():
    app.command(_name, cls=Plain, epilog=_epilog(_name))(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    command: Any = typer.main.get_command(app)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where the encoding is ASCII, a name that is not must not cost a verdict.
        sys.stdout.reconfigure(errors="backslashreplace")
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
    print(f"gradguard: {printable(message)}", file=sys.stderr)
    sys.exit(code)
