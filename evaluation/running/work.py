"""The two kinds of work in a study, done here or in several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gradguard import Defense
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.running.bench import Bench, Cell, prepare
from gradguard.evaluation.running.cell import CellScores, attack_cell
from gradguard.evaluation.running.rows import Cost, measure_cost


class Work(Protocol):
    """Costs and scores of defences, asked for in the order of the rows."""

    def cost(self, defense: Defense) -> Cost:
        """What training with the defence costs."""
        ...

    def scores(self, cell: Cell, defense: Defense) -> CellScores:
        """What the attacks get out of its messages."""
        ...


class Here:
    """In this process, when asked; remembers costs, which all rows of a defence share."""

    def __init__(self, bench: Bench, progress: Progress) -> None:
        self._bench, self._progress = bench, progress
        self._costs: dict[str, Cost] = {}

    def cost(self, defense: Defense) -> Cost:
        if defense.name not in self._costs:
            self._costs[defense.name] = measure_cost(self._bench, defense, self._progress)
        return self._costs[defense.name]

    def scores(self, cell: Cell, defense: Defense) -> CellScores:
        return attack_cell(self._bench, cell, defense, self._progress)


class Elsewhere:
    """In worker processes, all submitted at once in the order in which rows need them.

    Every draw has a named seed, so that a result does not depend on where it was computed.
    """

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        conditions: Sequence[Cell],
        defenses: Sequence[Defense],
        progress: Progress,
    ) -> None:
        self._progress = progress
        self._costs: dict[str, Future[tuple[Cost, int]]] = {}
        self._scores: dict[tuple[Cell, str], Future[tuple[CellScores, int]]] = {}
        with _workers_alive():  # one may end while work is still being handed out
            for cell in conditions:
                for defense in defenses:
                    if defense.name not in self._costs:
                        self._costs[defense.name] = pool.submit(_cost, defense)
                    self._scores[cell, defense.name] = pool.submit(_scores_of, cell, defense)
        self._counted: set[str] = set()

    def cost(self, defense: Defense) -> Cost:
        self._progress.doing(f"{defense.name}: training")
        with _workers_alive():
            cost, pieces = self._costs[defense.name].result()
        if defense.name not in self._counted:
            self._counted.add(defense.name)
            self._advance(pieces)
        return cost

    def scores(self, cell: Cell, defense: Defense) -> CellScores:
        self._progress.doing(f"{defense.name}: attacks")
        with _workers_alive():
            scores, pieces = self._scores[cell, defense.name].result()
        self._advance(pieces)
        return scores

    def _advance(self, pieces: int) -> None:
        for _ in range(pieces):
            self._progress.advance()


@contextmanager
def _workers_alive() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UnusableInputError(
            "a worker process was ended from outside, as happens where memory runs out; "
            "try again with fewer processes (--jobs)"
        ) from error


@contextmanager
def working(
    bench: Bench, conditions: Sequence[Cell], progress: Progress, *, jobs: int
) -> Iterator[Work]:
    """Work in ``jobs`` processes; with one, in this one."""
    if jobs == 1:
        yield Here(bench, progress)
        return
    before = set(multiprocessing.active_children())
    # Spawned, not forked: a forked copy of a process that has used torch's threads can hang.
    pool = ProcessPoolExecutor(
        max_workers=jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(_packed(bench),),
    )
    threads = torch.get_num_threads()
    try:
        # This process trains a little while the workers have the cores: threads would only spin.
        torch.set_num_threads(1)
        yield Elsewhere(pool, conditions, bench.study.defenses, progress)
    except BaseException:
        # Nobody waits for the rest of a study that was interrupted or has failed.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        torch.set_num_threads(threads)
        pool.shutdown(wait=True, cancel_futures=True)


def _packed(bench: Bench) -> bytes:
    try:
        return pickle.dumps((bench.study, bench.data, bench.factory))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UnusableInputError(
            f"the model's factory cannot be sent to another process ({one_line(error)}); "
            "define it in a module, or use jobs=1"
        ) from error


class _Counter(Silent):
    """Counts pieces of work in a worker; the process that shows progress adds them up."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self) -> None:
        self.done += 1


_worker_bench: list[Bench] = []  # one entry in a worker process, none elsewhere


def _leave_with_parent() -> None:
    """End this process when the one that started it has ended, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(packed: bytes) -> None:
    # Killed, a parent tells its workers nothing: they would wait for work for ever.
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Ctrl-C reaches the workers of a terminal too; they go without a word, the parent speaks.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # One thread each: as many processes as cores, and threads on top would only wait for them.
    torch.set_num_threads(1)
    threadpool_limits(1)
    study, data, factory = pickle.loads(packed)
    _worker_bench.append(prepare(study, data=data, factory=factory))


def _cost(defense: Defense) -> tuple[Cost, int]:
    counter = _Counter()
    return measure_cost(_worker_bench[0], defense, counter), counter.done


def _scores_of(cell: Cell, defense: Defense) -> tuple[CellScores, int]:
    counter = _Counter()
    return attack_cell(_worker_bench[0], cell, defense, counter), counter.done
