"""``gradguard evaluate``: run a study, print it, write it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from gradguard.attacks.head import find_head
from gradguard.evaluation.commands.observed import check_alone, check_no_defense, run_observed
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.evaluate import InterruptedStudyError, evaluate
from gradguard.evaluation.interruption import uninterrupted
from gradguard.evaluation.models import build_model, find_factory
from gradguard.evaluation.output import check_writable, write_report
from gradguard.evaluation.progress import shown
from gradguard.evaluation.report import Report
from gradguard.evaluation.running.bench import load_data
from gradguard.evaluation.running.pool import Backend
from gradguard.evaluation.study import Study, default_table, read_toml
from gradguard.evaluation.views.table import make_console, print_report

STORE = "cells"
"""The folder of finished units of work, in that of the report."""
GO_ON = "what is finished is kept, and the same command with --resume goes on from there"
FAILED = 1
"""The exit code where some rows could not be made."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


def command(
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
    backend: Annotated[
        str, typer.Option(metavar="loky|ray", help="Processes of this machine, or a Ray cluster.")
    ] = "loky",
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A running cluster. Default: one of its own."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take from OUT/cells what is finished.")
    ] = False,
    observed: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Attack what a server of this study recorded."),
    ] = None,
    defense: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --observed: which was deployed.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Neither progress nor table.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json, and nothing else.")
    ] = False,
) -> None:
    """Attack every defence of a study; report what leaks and what hiding it costs.

    With --observed, attack instead what a real server of federated averaging recorded, clients
    simulated as the study's [client] says; see gradguard.updates.recording.
    """
    # A time limit of a batch system comes as SIGTERM: keep the finished rows, as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if observed is None:
            check_no_defense(defense)
            code = run_evaluate(
                study,
                data=data,
                model=model,
                out=out,
                seed=seed,
                jobs=jobs,
                backend=backend,
                ray_address=ray_address,
                resume=resume,
                quiet=quiet,
                as_json=as_json,
            )
        else:
            check_alone(jobs=jobs, backend=backend, address=ray_address, resume=resume)
            code = run_observed(
                chosen_study(study, data=data, model=model, seed=seed),
                observed,
                defense=defense,
                out=out,
                quiet=quiet,
                as_json=as_json,
            )
    except KeyboardInterrupt:
        # Caught here: typer would turn it into an exit without a word.
        begun = observed is None and (out / STORE).is_dir()
        words = GO_ON if begun else "no work was done, and nothing was written"
        typer.echo(f"gradguard: interrupted; {words}", err=True)
        code = INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(code)


def run_evaluate(
    path: Path | None,
    *,
    data: Path | None,
    model: str | None,
    out: Path,
    seed: int | None,
    jobs: int | None,
    backend: str = "loky",
    ray_address: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> int:
    """Run a study, print it, write it; the exit code.

    Raises:
        UnusableInputError: Before any work is done and with nothing written.
        KeyboardInterrupt: Before the first row was finished.
    """
    study = chosen_study(path, data=data, model=model, seed=seed)
    check_writable(out)
    try:
        with shown(make_console(stderr=True), quiet=quiet or as_json) as progress:
            report = evaluate(
                study,
                progress=progress,
                command=["gradguard", *sys.argv[1:]],
                jobs=default_jobs() if jobs is None else jobs,
                backend=cast(Backend, backend),
                ray_address=ray_address,
                store=out / STORE,
                resume=resume,
            )
    except InterruptedStudyError as interrupt:
        if interrupt.report.rows:
            _deliver(interrupt.report, out, quiet=quiet, as_json=as_json)
        print(f"gradguard: interrupted; {GO_ON}", file=sys.stderr)
        return INTERRUPTED
    _deliver(report, out, quiet=quiet, as_json=as_json)
    if report.failures:
        print(f"gradguard: {failed_words(report)}", file=sys.stderr)
        return FAILED
    return 0


def failed_words(report: Report) -> str:
    """How many rows could not be made, and the first reason."""
    first, total = report.failures[0], len(report.failures) + len(report.rows)
    return (
        f"{len(report.failures)} of {total} rows could not be made; the first, {first.defense!r} "
        f"({first.stage}, {first.composition}, B = {first.batch_size}): {first.why}"
    )


def default_jobs() -> int:
    """One process per core, and at most four."""
    # Each process takes half a gigabyte before it holds any data: not one per core of a server.
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 4)


def _deliver(report: Report, out: Path, *, quiet: bool, as_json: bool) -> None:
    """Write the report, then show it: a terminal that is gone must not cost the files."""
    console = make_console()
    with uninterrupted():
        try:
            paths = write_report(report, out)
        except OSError as error:
            _show(report, console, quiet=quiet, as_json=as_json)  # what cannot be kept
            why = error.strerror or type(error).__name__
            raise UnusableInputError(
                f"{out}: the report could not be written ({why}); {GO_ON}"
            ) from error
    written = ", ".join(str(path) for path in paths)
    try:
        _show(report, console, quiet=quiet, as_json=as_json)
        if not (quiet or as_json):
            console.print(f"Written: {written}", soft_wrap=True, markup=False)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UnusableInputError(f"written: {written}, but not shown ({why})") from error


def _show(report: Report, console: Console, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(report.to_json())
        sys.stdout.flush()
    elif not quiet:
        print_report(report, console)


def chosen_study(
    path: Path | None, *, data: Path | None, model: str | None, seed: int | None
) -> Study:
    """The study file, or the default study, with what the command line says instead."""
    table = default_table() if path is None else read_toml(path)
    table.pop("search", None)  # what `gradguard search` varies is no part of the study itself
    folder = None if path is None else path.parent
    if data is not None:
        # Absolute: a path on the command line starts at the working folder, not at the study's.
        table["data"] = _section(table, "data", without=("name",)) | {"path": str(data.absolute())}
    if model is not None:
        table["model"] = {"factory": model}
    if seed is not None:
        table["seed"] = seed
    study = Study.from_dict(table, folder=folder)
    if path is None and model is not None:
        head = _head_layer(study)
        study = Study.from_dict(table | {"defense": default_table(head=head)["defense"]})
    return study


def _section(table: dict[str, Any], name: str, *, without: tuple[str, ...]) -> dict[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise UnusableInputError(f"[{name}] must be a table of keys and values, got {section!r}")
    return {key: value for key, value in section.items() if key not in without}


def _head_layer(study: Study) -> str:
    """Where the user's model has its output layer, which one default defence withholds."""
    data = load_data(study)
    factory = find_factory(study.model.name, study.model.factory)
    model = build_model(
        factory, input_shape=data.input_shape, num_classes=data.num_classes, seed=study.seed
    )
    return find_head(dict(model.named_parameters()), data.num_classes).layer
