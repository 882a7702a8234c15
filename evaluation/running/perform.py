"""Compute one unit of work, and keep it; or take it from the store."""

from __future__ import annotations

import time
import traceback
from typing import Any

import numpy as np

from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.progress import Progress
from gradguard.evaluation.running.bench import Bench
from gradguard.evaluation.running.cell import CellScores, attack_model
from gradguard.evaluation.running.rows import train_defended, weigh
from gradguard.evaluation.running.store import Store, StoreError
from gradguard.evaluation.running.units import Attacked, Trained, Undefended, Unit, Weighed
from gradguard.evaluation.training import Outcome


def perform(
    bench: Bench, store: Store, unit: Unit, keys: dict[Unit, str], progress: Progress
) -> str | None:
    """Compute ``unit`` and keep it under its key.

    Returns:
        Why it failed, or ``None``. A failure is not kept: the reason may be gone next time.

    Raises:
        StoreError: There is no room for it.
    """
    progress.doing(str(unit))
    store.begin(keys[unit])
    why, facts = None, dict[str, str]()
    try:
        _perform(bench, store, unit, keys, progress)
    except StoreError:
        raise
    except UnusableInputError as error:
        why = one_line(error)
    except MemoryError:
        why = "memory ran out; try again with fewer processes (--jobs)"
    except Exception as error:
        # A transform, an attack or a model of the user's own may raise anything, and hours of
        # other units are not to end here.
        why, facts = f"{type(error).__name__}: {one_line(error)}", {"at": traceback.format_exc()}
    if why is not None:
        store.log(unit=str(unit), failed=why, **facts)
    store.ended(keys[unit])
    return why


def _perform(
    bench: Bench, store: Store, unit: Unit, keys: dict[Unit, str], progress: Progress
) -> None:
    start = time.perf_counter()
    if isinstance(unit, Undefended):
        if not _undefended(bench, store, unit, keys):
            store.log(unit=str(unit), taken=True)
        return
    if isinstance(unit, Attacked) and unit.cell.stage == "trained":
        _undefended(bench, store, Undefended(unit.repeat), keys, shared=True)
    store.write(keys[unit], _result(bench, unit, progress))
    store.log(unit=str(unit), key=keys[unit], seconds=round(time.perf_counter() - start, 3))


def _result(bench: Bench, unit: Unit, progress: Progress) -> dict[str, Any]:
    defenses = {defense.name: defense for defense in bench.study.defenses}
    match unit:
        case Attacked(name, cell, repeat):
            return plain(attack_model(bench, cell, defenses[name], repeat, progress))
        case Trained(name, repeat):
            outcome = train_defended(bench, defenses[name], repeat)
            return {"accuracy": outcome.accuracy, "diverged": outcome.diverged}
        case Weighed(name):
            overhead, sent = weigh(bench, defenses[name])
            return {"step_overhead": overhead, "bytes_per_update": sent}
    raise AssertionError(unit)


def plain(scores: CellScores) -> dict[str, Any]:
    """Scores as plain data; :func:`scores_from` reads them back, exactly."""
    return {
        "calibration": {name: found.tolist() for name, found in scores.calibration.items()},
        "scored": {name: found.tolist() for name, found in scores.scored.items()},
        "skipped": scores.skipped,
    }


def scores_from(table: dict[str, Any]) -> CellScores:
    """The scores that :func:`plain` wrote."""
    parts = [
        {name: np.array(found) for name, found in table[which].items()}
        for which in ("calibration", "scored")
    ]
    return CellScores(parts[0], parts[1], table["skipped"])


def _undefended(
    bench: Bench, store: Store, unit: Undefended, keys: dict[Unit, str], **facts: bool
) -> bool:
    """Give ``bench`` the model of ``unit``, from the store; trained and put there if need be.

    Args:
        facts: For the log, where it is trained.

    Returns:
        Whether it was trained now.
    """
    if bench.has_undefended(unit.repeat):
        return False
    key, start = keys[unit], time.perf_counter()
    with store.alone(key):  # the others wait, and take it from the store
        trained = store.read_tensors(key) is None
        if trained:
            outcome = bench.train_undefended(unit.repeat)
            store.write_tensors(key, outcome.model.state_dict(), accuracy=outcome.accuracy)
            seconds = round(time.perf_counter() - start, 3)
            store.log(unit=str(unit), key=key, seconds=seconds, **facts)
    # From the store wherever it was trained: every process attacks the same model.
    held, described = store.read_tensors(key), store.read(key)
    if held is None:
        raise UnusableInputError(f"{store.path(key)}: cannot be read back; is the disk full?")
    model = bench.fresh_model(unit.repeat)
    model.load_state_dict(held)
    bench.take_undefended(unit.repeat, Outcome(model, described["accuracy"], False))
    return trained
