"""Work through tasks here, in processes of this machine (loky), or on a Ray cluster.

joblib hands the tasks out, in one ``Parallel`` call a run; results travel through the store alone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
import torch
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gradguard.evaluation.data import Data
from gradguard.evaluation.errors import UnusableInputError, one_line
from gradguard.evaluation.models import Factory
from gradguard.evaluation.progress import Progress, Silent
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.running.follow import following
from gradguard.evaluation.running.perform import perform
from gradguard.evaluation.running.ray_cluster import ray_cluster
from gradguard.evaluation.running.store import Store
from gradguard.evaluation.running.units import Attacked, Task, Undefended, Unit
from gradguard.evaluation.study import Study

Backend = Literal["loky", "ray"]
BACKENDS = ("loky", "ray")

KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "ActorDiedError", "RayActorError")
"""What joblib's backends raise where a worker has ended before its work."""

MEMORY = (
    "a worker process was ended from outside, as happens where memory runs out; try again with "
    "fewer processes (--jobs), more memory or smaller batches, and --resume"
)

Failures = dict[Unit, str]
"""Why units failed."""


@dataclass(frozen=True)
class Parcel:
    """What a worker needs to make the bench of a study."""

    name: str  # of its own: what came through another process need not be pickled again
    study: Study
    data: str  # a file: images are many, and tasks too
    names: tuple[str, int]
    factory: Factory
    store: Path
    watch: bool  # end with the parent process

    @classmethod
    def packed(cls, bench: Bench, store: Store, data: Path, *, watch: bool) -> Parcel:
        """The parcel of ``bench``, whose images and labels lie in the file ``data``."""
        names, folder = (bench.data.name, bench.data.num_classes), store.folder.absolute()
        given = (bench.study, str(data.absolute()), names, bench.factory, folder, watch)
        parcel = cls(uuid.uuid4().hex, *given)
        _check_sendable("the model's factory", bench.factory)
        for defense in bench.study.defenses:
            _check_sendable(f"defence {defense.name!r}", defense)
        return parcel

    def bench(self) -> Bench:
        """The bench, in a worker."""
        tensors = load_file(self.data)
        name, classes = self.names
        data = Data(name, tensors["images"], tensors["labels"], classes)
        return prepare(self.study, data=data, factory=self.factory, checked=True)


def _check_sendable(what: str, value: object) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:  # a user's own __getstate__ may raise anything
        raise UnusableInputError(
            f"{what} cannot be sent to another process ({one_line(error)}); define it in a "
            "module, or use jobs=1"
        ) from error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread, here as in every worker: sums in another order have other last digits."""
    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def run_here(
    bench: Bench, store: Store, tasks: Sequence[Task], keys: dict[Unit, str], progress: Progress
) -> Failures:
    """Work through the tasks in this process."""
    failed = {}
    for task in tasks:
        for unit in task:
            if why := perform(bench, store, unit, keys, progress):
                failed[unit] = why
            progress.advance()
    return failed


def run_elsewhere(
    bench: Bench,
    store: Store,
    tasks: Sequence[Task],
    keys: dict[Unit, str],
    progress: Progress,
    *,
    jobs: int,
    backend: Backend,
    address: str | None,
) -> Failures:
    """Work through the tasks in ``jobs`` processes.

    Guarantees:

    - a worker that is killed fails the unit that it is killed with a second time, and no other.

    Raises:
        UnusableInputError: The factory cannot be sent, or there is no such cluster.
    """
    cluster = ray_cluster(jobs, address) if backend == "ray" else _loky()
    with store.lent(bench.data.images, bench.data.labels) as data:
        parcel = Parcel.packed(bench, store, data, watch=backend == "loky")

        def work(left: Sequence[Task]) -> Failures:
            calls = [joblib.delayed(run_task)(parcel, t, needed(t, keys)) for t in left]
            with joblib.parallel_config(n_jobs=jobs, **options):
                found = joblib.Parallel(batch_size=1)(calls)
            return {unit: why for failures in found for unit, why in failures.items()}

        with cluster as options, following(store, progress):
            return _survived(work, store, tasks, keys)


def _survived(
    work: Callable[[Sequence[Task]], Failures],
    store: Store,
    tasks: Sequence[Task],
    keys: dict[Unit, str],
) -> Failures:
    """Work through the tasks, whatever becomes of the workers.

    joblib cannot tell which worker was killed, and gives up all of them. Units that were at work
    are then tried again, one by one, so that the one that takes too much memory fails alone.
    """
    failed: Failures = {}
    left, start = list(tasks), store.log_size()
    while left:
        with _killed():
            return failed | work(left)
        done = store.logged(start)
        open_units = [unit for task in left for unit in task if keys[unit] not in done]
        # None has begun where workers die as they start: then each is tried, and all of them fail.
        for unit in [u for u in open_units if store.begun(keys[u])] or open_units:
            with _killed() as killed:
                failed |= work([(unit,)])
            if killed:
                failed[unit] = MEMORY
                store.ended(keys[unit])
        done = store.logged(start)
        todo = (tuple(u for u in t if u not in failed and keys[u] not in done) for t in left)
        left = [task for task in todo if task]
    return failed


@contextlib.contextmanager
def _killed() -> Iterator[list[str]]:
    """Hold back the error of a worker that has ended; its name is then in the list."""
    found: list[str] = []
    try:
        yield found
    except Exception as error:
        if "un-serialize" in str(error):
            # Not a worker's death: it would only happen again, with every unit.
            cause = error.__cause__ or error
            raise UnusableInputError(
                "another process could not read a defence or the model's factory "
                f"({one_line(cause)[-200:]}); define them in a module that can be imported, or "
                "use jobs=1"
            ) from error
        if type(error).__name__ not in KILLED:
            raise
        found.append(type(error).__name__)


def needed(task: Task, keys: dict[Unit, str]) -> dict[Unit, str]:
    """The keys that a task needs: of its own units, and of the undefended models under them."""
    shared = {Undefended(unit.repeat) for unit in task if isinstance(unit, Attacked)}
    return {unit: keys[unit] for unit in (*task, *shared) if unit in keys}


@contextlib.contextmanager
def _loky() -> Iterator[dict[str, Any]]:
    yield {"backend": "loky", "inner_max_num_threads": 1}


_benches: dict[str, Bench] = {}  # at most one, in a worker process


def run_task(parcel: Parcel, task: Task, keys: dict[Unit, str]) -> Failures:
    """Work through a task in a worker process."""
    if parcel.watch:
        _leave_with(os.getppid())
        # Ctrl-C reaches the workers of a terminal too; the parent speaks, and ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with one_thread():
        if parcel.name not in _benches:
            _benches.clear()
            _benches[parcel.name] = parcel.bench()
        return run_here(_benches[parcel.name], Store(parcel.store), [task], keys, Silent())


_watching: list[Callable[[], None]] = []


def _leave_with(parent: int) -> None:
    """End this process when the one that started it has ended, however it ended."""

    def watch() -> None:
        # Killed, a parent tells its workers nothing: they would go on computing for nobody.
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    if not _watching:
        _watching.append(watch)
        threading.Thread(target=watch, daemon=True).start()
