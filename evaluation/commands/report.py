"""``gradguard report``: show a report again, and write its pages anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradguard.evaluation.commands.stating import output_checked
from gradguard.evaluation.decisions.judgeable import FILE, read_judgeable
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.output import write_views
from gradguard.evaluation.report import Report
from gradguard.evaluation.views.markdown import render_markdown
from gradguard.evaluation.views.table import make_console, print_report


def command(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report.json, or the folder that holds it.")
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print report.md instead, and write nothing.")
    ] = False,
) -> None:
    """Print the table of a finished report, and write its page and plots anew from report.json.

    That is of use after an upgrade, and where only report.json was kept. A file of another name is
    shown, and nothing is written.
    """
    raise typer.Exit(run_report(report, markdown=markdown))


def run_report(path: Path, *, markdown: bool) -> int:
    """Show a report; 0.

    Guarantees:

    - ``report.json`` itself is read and never written.

    Args:
        markdown: Print ``report.md`` and write nothing.

    Raises:
        UnusableInputError: There is no report, it is damaged, or the files cannot be written.
    """
    found = read_judgeable(path)
    console = make_console()  # first: it sees to names that the output cannot encode
    with output_checked():
        try:
            if markdown:
                print(render_markdown(found), end="", flush=True)
                return 0
            written = _rewrite(found, path)
            print_report(found, console)
        except UnusableInputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            # Its rows are sound: what is missing is what lies around them.
            why = f"{type(error).__name__}: {one_line(error)}"
            raise UnusableInputError(
                f"{path}: its study or provenance lacks what is shown ({why}); was it written by "
                "another gradguard?"
            ) from error
        if written:
            console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)
    return 0


def _rewrite(report: Report, path: Path) -> list[Path]:
    if not path.is_dir() and path.name != FILE:
        return []  # beside a copy there may be the pages of another report
    folder = path if path.is_dir() else path.parent
    try:
        return write_views(report, folder)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UnusableInputError(f"{folder}: the report could not be written ({why})") from error
