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
from gradguard.evaluation.running.own_code import digest
from gradguard.evaluation.running.perform import perform
from gradguard.evaluation.running.ray_cluster import ray_cluster
from gradguard.evaluation.running.store import Store
from gradguard.evaluation.running.units import Attacked, Task, Undefended, Unit
from gradguard.evaluation.study import Study

Backend = Literal["loky", "ray"]
BACKENDS = ("loky", "ray")

Failures = dict[Unit, str]
"""Why units failed."""


@dataclass(frozen=True)
class Parcel:
    """What a worker needs to make the bench of a study."""

    study: Study
    data: str  # a file: images are many, and tasks too
    names: tuple[str, int]
    factory: Factory
    store: Path
    watch: bool  # end with the parent process

    @classmethod
    def packed(cls, bench: Bench, store: Store, data: str, *, watch: bool) -> Parcel:
        """The parcel of ``bench``, whose data lie in the store under the key ``data``."""
        tensors = {"images": bench.data.images, "labels": bench.data.labels}
        if store.read_tensors(data) is None:
            store.write_tensors(data, tensors)
        names, path = (bench.data.name, bench.data.num_classes), store.path(data, ".safetensors")
        parcel = cls(
            bench.study, str(path.absolute()), names, bench.factory, store.folder.absolute(), watch
        )
        try:
            pickle.dumps(parcel)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UnusableInputError(
                f"the model's factory cannot be sent to another process ({one_line(error)}); "
                "define it in a module, or use jobs=1"
            ) from error
        return parcel

    def bench(self) -> Bench:
        """The bench, in a worker."""
        tensors = load_file(self.data)
        name, classes = self.names
        data = Data(name, tensors["images"], tensors["labels"], classes)
        return prepare(self.study, data=data, factory=self.factory, checked=True)


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
    data: str,
    jobs: int,
    backend: Backend,
    address: str | None,
) -> Failures:
    """Work through the tasks in ``jobs`` processes.

    Raises:
        UnusableInputError: The factory cannot be sent, or there is no such cluster.
    """
    parcel = Parcel.packed(bench, store, data, watch=backend == "loky")
    calls = [
        joblib.delayed(run_task)(parcel, task, {unit: keys[unit] for unit in needed(task, keys)})
        for task in tasks
    ]
    cluster = ray_cluster(jobs, address) if backend == "ray" else _loky()
    with cluster as options, following(store, progress):
        try:
            with joblib.parallel_config(n_jobs=jobs, **options):
                found = joblib.Parallel(batch_size=1)(calls)
        except Exception as error:
            if type(error).__name__ not in ("TerminatedWorkerError", "ActorDiedError"):
                raise
            why = (
                "a worker process was ended from outside, as happens where memory runs out; try "
                "again with fewer processes (--jobs) and --resume"
            )
            return {unit: why for task in tasks for unit in task if not store.has(keys[unit])}
    return {unit: why for failures in found for unit, why in failures.items()}


def needed(task: Task, keys: dict[Unit, str]) -> list[Unit]:
    """Units whose keys a task needs: its own, and the undefended models under them."""
    repeats = {unit.repeat for unit in task if isinstance(unit, Attacked)}
    shared = [unit for unit in keys if isinstance(unit, Undefended) and unit.repeat in repeats]
    return [*task, *shared]


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
        name = digest(pickle.dumps(parcel))
        if name not in _benches:
            _benches.clear()
            _benches[name] = parcel.bench()
        return run_here(_benches[name], Store(parcel.store), [task], keys, Silent())


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
