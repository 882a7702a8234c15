"""``gradguard evaluate STUDY --observed FOLDER``: attack what a real server saw."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.interruption import uninterrupted
from gradguard.evaluation.observed.observe import InterruptedObservationError, observe
from gradguard.evaluation.observed.result import ObservedReport
from gradguard.evaluation.observed.stating import print_observed, render_observed
from gradguard.evaluation.output import check_writable, write_atomically
from gradguard.evaluation.progress import shown
from gradguard.evaluation.study import Study
from gradguard.evaluation.views.table import make_console

JSON, MARKDOWN = "observed.json", "observed.md"
INTERRUPTED = 130


def run_observed(
    study: Study,
    folder: Path,
    *,
    defense: str | None,
    out: Path,
    quiet: bool,
    as_json: bool,
) -> int:
    """Attack a recording, print it, write ``observed.json`` and ``observed.md``; the exit code.

    Raises:
        UnusableInputError: Nothing is written then.
    """
    check_writable(out)
    _check_no_folders(out)
    code = 0
    try:
        with shown(make_console(stderr=True), quiet=quiet or as_json) as progress:
            command = ["gradguard", *sys.argv[1:]]
            report = observe(study, folder, defense=defense, progress=progress, command=command)
    except InterruptedObservationError as interrupt:
        report, code = interrupt.report, INTERRUPTED
    except KeyboardInterrupt:
        typer.echo("gradguard: interrupted; no round was finished, nothing was written", err=True)
        return INTERRUPTED
    _deliver(report, out, quiet=quiet, as_json=as_json)
    if code:
        typer.echo("gradguard: interrupted; written is what was finished", err=True)
    return code


def check_no_defense(name: str | None) -> None:
    """Raise if one defence was named where all are evaluated.

    Raises:
        UnusableInputError: See above.
    """
    if name is not None:
        raise UnusableInputError(
            "--defense goes with --observed; without it all defences of the study are evaluated"
        )


def check_alone(*, jobs: int | None, backend: str, address: str | None, resume: bool) -> None:
    """Raise if options were given that are for studies alone.

    Raises:
        UnusableInputError: See above.
    """
    given = {
        "--jobs": jobs not in (None, 1),
        "--backend": backend != "loky",
        "--ray-address": address is not None,
        "--resume": resume,
    }
    for option, there in given.items():
        if there:
            raise UnusableInputError(
                f"--observed attacks in this process, from the start; leave out {option}"
            )


def _check_no_folders(out: Path) -> None:
    """Raise where a report's name is a folder's: before the work, not after it."""
    for name in (JSON, MARKDOWN):
        if (out / name).is_dir():
            raise UnusableInputError(
                f"{out}: cannot write there ({name} is a folder); choose another folder with --out"
            )


def _deliver(report: ObservedReport, out: Path, *, quiet: bool, as_json: bool) -> None:
    """Write, then show: a terminal that is gone must not cost the files."""
    contents = {JSON: report.to_json(), MARKDOWN: render_observed(report)}
    with uninterrupted():
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, text in contents.items():
                # A file name need not be UTF-8, and the command is in the report.
                write_atomically(out / name, text.encode(errors="backslashreplace"))
        except OSError as error:
            _show(report, quiet=quiet, as_json=as_json)  # what cannot be kept
            why = error.strerror or type(error).__name__
            raise UnusableInputError(
                f"{out}: the report could not be written ({why}); choose another folder with --out"
            ) from error
    written = ", ".join(str(out / name) for name in contents)
    try:
        _show(report, quiet=quiet, as_json=as_json)
        if not (quiet or as_json):
            make_console().print(f"Written: {written}", soft_wrap=True, markup=False)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UnusableInputError(f"written: {written}, but not shown ({why})") from error


def _show(report: ObservedReport, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(report.to_json())
        sys.stdout.flush()
    elif not quiet:
        print_observed(report, make_console())
