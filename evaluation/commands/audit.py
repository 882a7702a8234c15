"""``gradguard audit``: try to refute what DP defences claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradguard.evaluation.commands.evaluate import INTERRUPTED


def command(
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
    from gradguard.evaluation.auditing.study import run_audit

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
