"""``gradguard search``: which parameters of a defence are worth having."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gradguard.evaluation.commands.evaluate import INTERRUPTED, STORE, default_jobs
from gradguard.evaluation.commands.stating import output_checked
from gradguard.evaluation.decisions.prerequisites import notes
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.output import check_writable, write_atomically, write_report
from gradguard.evaluation.progress import shown
from gradguard.evaluation.report import Report
from gradguard.evaluation.search.measuring import Meter
from gradguard.evaluation.search.objectives import candidates
from gradguard.evaluation.search.results import Found, print_found
from gradguard.evaluation.search.settings import SECTION, SearchSettings, is_bare, references
from gradguard.evaluation.study import Study, default_table, read_toml
from gradguard.evaluation.views.table import make_console

JOURNAL = "search.journal"
FOUND = "search.json"


def command(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY.toml]", help="Default: the conditions of evaluate."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Candidates to propose. Default: 40.")] = None,
    batch: Annotated[int | None, typer.Option(help="Candidates at a time. Default: 8.")] = None,
    max_advantage: Annotated[
        float | None, typer.Option(help="The most that may be read over a blind guess, 0 to 1.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="The least accuracy after training, 0 to 1.")
    ] = None,
    max_bytes: Annotated[float | None, typer.Option(help="The longest message.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every draw.")] = None,
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("gradguard-search"),
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the recommendation, in one line.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print search.json, and nothing else.")
    ] = False,
) -> None:
    """Search the parameters of defences; recommend one. Exit code 1: none is good enough.

    The study's [search] section says what is searched; without one, DP-SGD, top-k, QSGD and noise
    are. Limits are judged by the bad end of the 95 % intervals.
    """
    # A time limit of a batch system comes as SIGTERM: end as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    limits = {
        "trials": trials,
        "batch": batch,
        "max_advantage": max_advantage,
        "min_accuracy": min_accuracy,
        "max_bytes": max_bytes,
    }
    options = {
        "jobs": default_jobs() if jobs is None else jobs,
        "backend": backend,
        "ray_address": ray_address,
    }
    try:
        code = run_search(
            study,
            out=out,
            seed=seed,
            resume=resume,
            quiet=quiet,
            as_json=as_json,
            limits=limits,
            options=options,
        )
    except KeyboardInterrupt:
        typer.echo(f"gradguard: interrupted; go on with --resume --out {out}", err=True)
        code = INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(code)


def run_search(
    path: Path | None,
    *,
    out: Path,
    seed: int | None = None,
    resume: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    limits: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> int:
    """Search, print the front and the recommendation, write all of it; the exit code.

    Args:
        limits: Keys of the ``[search]`` section, in place of what the file says.
        options: Of :func:`gradguard.evaluation.evaluate`.

    Raises:
        UnusableInputError: Something cannot be used; nothing was searched.
        KeyboardInterrupt: What is finished is kept.
    """
    study, settings = chosen(path, seed=seed, limits=limits or {})
    if importlib.util.find_spec("optuna") is None:
        raise UnusableInputError("search needs Optuna: pip install 'gradguard[search]'")
    check_writable(out)
    if (out / JOURNAL).exists() and not resume:
        raise UnusableInputError(
            f"{out}: holds a search already; go on with it by --resume, or choose another folder "
            "with --out"
        )
    silent = quiet or as_json
    found, report = _searched(study, settings, out, silent=silent, options=options or {})
    try:
        paths = [*write_report(report, out), out / FOUND]
        write_atomically(out / FOUND, found.to_json().encode(errors="backslashreplace"))
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UnusableInputError(
            f"{out}: the results could not be written ({why}); make room and go on with --resume"
        ) from error
    console = make_console()
    with output_checked():
        if as_json:
            print(found.to_json(), end="", flush=True)
        elif quiet:
            print(found.recommendation.sentence, flush=True)
        else:
            print_found(found, console)
            console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, markup=False)
    return 1 if found.recommendation.use is None else 0


def _searched(
    study: Study, settings: SearchSettings, out: Path, *, silent: bool, options: dict[str, Any]
) -> tuple[Found, Report]:
    # Optuna takes a second to load, and a mistyped option should not wait for it.
    from gradguard.evaluation.search.journal import Journal
    from gradguard.evaluation.search.trials import run_trials

    options = options | {"command": ["gradguard", *sys.argv[1:]]}
    console = make_console(stderr=True)
    meter = Meter(study, out / STORE, lambda: shown(console, quiet=silent), options)

    def told(done: int) -> None:
        if not silent:
            console.print(f"gradguard: {done} of {settings.trials} candidates", highlight=False)

    # Not the version of gradguard: cells of another one are computed anew for the report.
    same = {
        "seed": study.seed,
        "batch": settings.batch,
        "space": settings.space.to_list(),
        "study": {k: v for k, v in study.to_dict().items() if k != "defense"},
        "data": meter.data,
    }
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out / JOURNAL, space=settings.space, settings=same) as journal:
        defenses = run_trials(
            settings, study.defenses, measure=meter, journal=journal, seed=study.seed, told=told
        )
        report = meter.report(defenses)
    bare = next((defense.name for defense in study.defenses if is_bare(defense)), None)
    tried = tuple(candidates(report, defenses))
    found = Found(tried, settings, study.seed, bare, notes(report, list(report.rows)))
    return found, report


def chosen(
    path: Path | None, *, seed: int | None, limits: dict[str, Any]
) -> tuple[Study, SearchSettings]:
    """The study and the search that a file and the command line ask for."""
    table = default_table() | {"defense": []} if path is None else read_toml(path)
    settings = SearchSettings.from_dict(table.pop(SECTION, {}), **limits)
    if seed is not None:
        table["seed"] = seed
    table["defense"] = references(table.get("defense", []))
    study = Study.from_dict(table, folder=None if path is None else path.parent)
    if settings.constraints.min_accuracy is not None and study.training.seeds < 2:
        raise UnusableInputError(
            "min-accuracy is judged by an interval, which one training run has not: set "
            "training.seeds to at least 2"
        )
    return study, settings
