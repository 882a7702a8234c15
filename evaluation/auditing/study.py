"""What ``gradguard audit`` does: every DP defence of a study, with both kinds of canary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gradguard import Defense
from gradguard.evaluation.auditing.canaries import Canary, canary_batches
from gradguard.evaluation.auditing.engine import AuditResult, audit_client
from gradguard.evaluation.commands.evaluate import chosen_study
from gradguard.evaluation.errors import UnusableInputError, one_line, unknown
from gradguard.evaluation.output import check_writable, write_atomically
from gradguard.evaluation.progress import Bar
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.views.table import make_console

BATCH = 4
CAUTION = (
    "An audit gives a lower bound: it can refute a claim and never prove one. Sampling, the "
    "loop around the client and what else is published are not looked at."
)


@dataclass(frozen=True)
class Audited:
    """One row of the table."""

    defense: str
    result: AuditResult


def run_audit(
    path: Path | None,
    *,
    defense: str | None,
    data: Path | None,
    model: str | None,
    draws: int,
    alpha: float,
    seed: int | None,
    out: Path | None,
) -> int:
    """Audit, print, write; 1 where a claim is refuted and else 0.

    Raises:
        UnusableInputError: Before any work is done and with nothing written.
    """
    if not draws >= 100:
        raise UnusableInputError(f"--draws must be at least 100, got {draws}")
    if not 0 < alpha < 1:
        raise UnusableInputError(f"--alpha must be between 0 and 1, got {alpha!r}")
    if out is not None:
        _check_file(out)
    bench = prepare(chosen_study(path, data=data, model=model, seed=seed))
    chosen = _chosen(bench.study.defenses, defense)
    claiming = [one for one in chosen if one.dp is not None]
    if not claiming:
        raise UnusableInputError(
            "no defence here uses DP-SGD, so none has a claim to audit; "
            "add dp = { noise_multiplier = ..., max_grad_norm = ... } to one"
        )
    with _one_thread():
        rows = audit_defenses(bench, claiming, draws=draws, alpha=alpha)
    silent = [one.name for one in chosen if one.dp is None]
    # Shown first: what cannot be kept is at least seen.
    print_audit(rows, silent, make_console(), alpha=alpha)
    if out is not None:
        _write(out, to_json(rows, silent, alpha=alpha))
    return int(any(row.result.flagged for row in rows))


def audit_defenses(
    bench: Bench, defenses: Sequence[Defense], *, draws: int, alpha: float
) -> list[Audited]:
    """Every defence with both canaries, on the study's fresh model.

    ``alpha`` is for all of them together: a study with many defences raises no more false alarms
    than one with few.
    """
    net = bench.fresh_model(0)
    batches = canary_batches(net, bench.data.images[:BATCH], bench.data.labels[:BATCH])
    kinds: tuple[Canary, ...] = get_args(Canary)
    rows = []
    with Bar(make_console(stderr=True)) as bar:
        bar.begin(len(defenses) * len(kinds))
        for defense in defenses:
            assert defense.dp is not None
            for kind in kinds:
                bar.doing(f"{defense.name}: {kind}")
                client = defense.client(
                    net, batch_size=BATCH, seed=bench.seed("audit", defense.name, kind)
                )
                try:
                    result = audit_client(
                        client,
                        batches.with_canary,
                        batches.neighbour(kind),
                        canary=kind,
                        claim_mu=claimed_mu(defense.dp.noise_multiplier, kind),
                        draws=draws,
                        alpha=alpha / (len(defenses) * len(kinds)),
                        delta=defense.dp.delta,
                        seed=bench.seed("audit order", defense.name, kind),
                    )
                except (ValueError, NotImplementedError) as error:
                    raise UnusableInputError(
                        f"defence {defense.name!r}: {one_line(error)}"
                    ) from error
                rows.append(Audited(defense.name, result))
                bar.advance()
    return rows


def claimed_mu(noise_multiplier: float, canary: Canary) -> float:
    """What one release of DP-SGD claims for the neighbours that ``canary`` makes.

    >>> claimed_mu(2.0, "add-remove"), claimed_mu(2.0, "label-flip")
    (0.5, 1.0)
    """
    # Replacing moves the sum by up to twice the clipping norm.
    return (1 if canary == "add-remove" else 2) / noise_multiplier


def print_audit(
    rows: Sequence[Audited], silent: Sequence[str], console: Console, *, alpha: float
) -> None:
    """The table, who claims nothing, and a closing sentence."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("defence", no_wrap=True, overflow="ellipsis", max_width=28)
    table.add_column("canary", no_wrap=True)
    table.add_column("adjacency", no_wrap=True)
    for name in ("mu at\nleast", "mu\nclaimed", "epsilon\nat least", "epsilon\nclaimed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        found = row.result
        numbers = (found.mu_lower, found.claim_mu, found.epsilon_lower, found.claim_epsilon)
        shown = ["-" if number is None else f"{number:.2f}" for number in numbers]
        verdict = Text("REFUTED", style="red") if found.flagged else Text("not refuted")
        table.add_row(Text(row.defense), found.canary, found.adjacency, *shown, verdict)
    console.print(table)
    for name in silent:
        console.print(Text(f"{name}: no DP, so there is no claim to audit."))
    for line in weak(rows):
        console.print(Text(line, style="yellow"))
    console.print(Text(CAUTION, style="dim"))
    console.print(Text(closing(rows, alpha=alpha), style="bold"))


def weak(rows: Sequence[Audited]) -> list[str]:
    """Where even flawless distinguishing could not have refuted the claim with so few draws."""
    return [
        f"{row.defense}, {row.result.canary}: {row.result.draws} draws can show a mu of at most "
        f"{row.result.mu_ceiling:.1f}, and {row.result.claim_mu:.1f} is claimed; more draws needed."
        for row in rows
        if row.result.claim_mu is not None and row.result.mu_ceiling <= row.result.claim_mu
    ]


def closing(rows: Sequence[Audited], *, alpha: float) -> str:
    """One plain sentence."""
    draws = rows[0].result.draws
    broken = list(dict.fromkeys(row.defense for row in rows if row.result.flagged))
    if broken:
        names = ", ".join(broken)
        return f"The claim of {names} is refuted: more leaks than its privacy accounting says."
    return (
        f"No claim is refuted by {len(rows)} audits of {draws} draws each "
        f"(all together right with probability {1 - alpha:g})."
    )


def to_json(rows: Sequence[Audited], silent: Sequence[str], *, alpha: float) -> str:
    """As a file."""
    content: dict[str, Any] = {
        "schema": 1,
        "alpha": alpha,
        "audits": [{"defense": row.defense, **row.result.to_dict()} for row in rows],
        "without_claim": list(silent),
        "caution": CAUTION,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


@contextmanager
def _one_thread() -> Iterator[None]:
    # Thousands of small messages: starting threads for each takes longer than the work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _chosen(defenses: Sequence[Defense], name: str | None) -> list[Defense]:
    if name is None:
        return list(defenses)
    found = [defense for defense in defenses if defense.name == name]
    if not found:
        raise unknown("defence", name, [defense.name for defense in defenses])
    return found


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UnusableInputError(f"{path}: the audit could not be written ({why})") from error


def _check_file(path: Path) -> None:
    try:
        # With room for the ending of the temporary file that it is written to first.
        folder, _ = path.is_dir(), (path.parent / f".{path.name}.{8 * '_'}").exists()
    except (OSError, ValueError) as error:
        raise UnusableInputError(
            f"--out {str(path)[:40]!r}: cannot be a file ({one_line(error)[:60]}); choose another"
        ) from error
    if folder:
        raise UnusableInputError(f"{path}: is a folder; give --out the name of a file")
    check_writable(path.parent)
    if not path.parent.exists():
        raise UnusableInputError(f"{path.parent}: no such folder; create it or choose another")
