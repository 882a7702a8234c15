"""What the whole bank of attacks costs on one cell, attack by attack, beside LLG+ as published.

Each cell is measured in a process of its own, with two threads, through the code of a report.
What several attacks share is paid by the first that asks for it: ``TemplateRegression(bias)``
computes the class gradients, and ``LearnedRegression`` rehearses for ``Ensemble`` too.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.llg_plus_speed import published
from benchmarks.mnist import mnist_path
from benchmarks.resnet18 import resnet18
from benchmarks.table import print_table
from gradguard.attacks import RLG
from gradguard.attacks.simulation import Pool
from gradguard.attacks.threat import Attack, FittedAttack, Knowledge, Observation
from gradguard.evaluation import Study
from gradguard.evaluation.data import Data
from gradguard.evaluation.metrics import success
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running.bench import Bench, prepare
from gradguard.evaluation.running.cell import attack_cell
from gradguard.evaluation.running.units import cells

THREADS = 2
TOP_K = [{"KeepTopK": {"ratio": 0.01, "scope": "global"}}]
TRANSFORMS: dict[str, list[dict[str, Any]]] = {"undefended": [], "top-k 1 %": TOP_K}
CELL_SECONDS = 20.0
RESNET_SECONDS, RESNET_GIB = 600.0, 4.0
RLG_PASSES = 20.0
CLASSES, PER_CLASS = 100, 60
PUBLISHED_LLG_PLUS = "LLG+ as published"
SHOWN = 0.05  # seconds; attacks below it are summed up

Out = TypeVar("Out")
Seconds = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One cell: seconds in all and by attack, success rates by attack, and the most memory."""

    seconds: float
    by_attack: Seconds
    rates: dict[str, float]
    gibibytes: float


def main(
    *, simulated: int = 1500, scored: int = 200, on_resnet: int = 150, plain: int = 200
) -> bool:
    """Print both tables and RLG's cost; true if all are within the limits.

    Args:
        simulated: Batches that learned attacks fit on, on MNIST; 30 % more judge.
        scored: Scored batches on MNIST; half as many calibrate.
        on_resnet: Simulated batches on ResNet-18.
        plain: Scored batches that LLG+ reads as its authors run it.
    """
    mnist_path()
    small = {name: _alone(_on_mnist, name, simulated, scored) for name in TRANSFORMS}
    slow = _alone(_plain_llg_plus, scored, plain)
    met = _small_table(small, slow, simulated, scored)
    met &= _resnet_table(_alone(_on_resnet, on_resnet), on_resnet)
    return met & _rlg_table(_alone(_rlg_ratios))


def _alone(work: Callable[..., Out], *arguments: object) -> Out:
    """In a new process: neither its memory nor what attacks remember is another cell's."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_two_threads
    ) as process:
        return process.submit(work, *arguments).result()


def _two_threads() -> None:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    torch.set_num_threads(THREADS)
    threadpool_limits(THREADS)


@dataclass(frozen=True)
class Timed:
    """An attack, or one that is fitted, that adds up the time it takes."""

    attack: Any
    name: str
    spent: Seconds

    @property
    def needs(self) -> frozenset[str]:
        needed: frozenset[str] = self.attack.needs
        return needed

    def fit(self, knowledge: Knowledge) -> FittedAttack:
        return replace(self, attack=self._timed(self.attack.fit, knowledge))

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        counts: Tensor = self._timed(self.attack.infer, observations)
        return counts

    def _timed(self, work: Callable[[Any], Out], argument: object) -> Out:
        start = time.perf_counter()
        try:
            return work(argument)
        finally:
            taken = time.perf_counter() - start
            self.spent[self.name] = self.spent.get(self.name, 0.0) + taken


def _measure(bench: Bench) -> Measured:
    spent: Seconds = {}
    attacks: dict[str, Attack] = {n: Timed(a, n, spent) for n, a in bench.attacks.items()}
    [cell] = cells(bench.study)
    start = time.perf_counter()
    scores = attack_cell(replace(bench, attacks=attacks), cell, bench.study.defenses[0], Silent())
    seconds = time.perf_counter() - start
    rates = {name: float(found.mean()) for name, found in scores.scored.items()}
    # Linux has it in kibibytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Measured(seconds, spent, rates, peak)


def _study(simulated: int, scored: int, transform: list[dict[str, Any]], **data: Any) -> Study:
    return Study.from_dict(
        {
            "data": {"test_fraction": 0.1, "client_fraction": 0.6, **data},
            "model": {"name": "cnn-relu"},
            "training": {"seeds": 1},
            "attack": {
                "batch_sizes": [8],
                "compositions": ["skewed"],
                "stages": ["init"],
                "trials": scored,
                "calibration": max(1, scored // 2),
                "simulated": simulated,
            },
            "defense": [{"name": "defence", "transform": transform}],
        }
    )


def _on_mnist(name: str, simulated: int, scored: int) -> Measured:
    return _measure(prepare(_study(simulated, scored, TRANSFORMS[name], path=str(mnist_path()))))


def _on_resnet(simulated: int) -> Measured:
    """Images are noise around a pattern per class: what they show does not change the cost."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES * PER_CLASS) % CLASSES
    patterns = torch.rand(CLASSES, 3, 32, 32, generator=rng)
    images = 0.5 * patterns[labels] + 0.5 * torch.rand(len(labels), 3, 32, 32, generator=rng)
    data = Data("synthetic", images, labels, CLASSES)
    return _measure(prepare(_study(simulated, 50, TOP_K), data=data, factory=resnet18))


def _plain_llg_plus(scored: int, plain: int) -> Measured:
    """The undefended cell's scored batches, each by the authors' procedure: nothing is shared."""
    bench = prepare(_study(40, scored, [], path=str(mnist_path())))
    [cell] = cells(bench.study)
    batches = bench.batches("scored", cell, 0)[:plain]
    model = bench.model(cell.stage, 0)
    client = bench.study.defenses[0].client(model, seed=0)
    pool = Pool.of(*bench.auxiliary(), bench.data.num_classes)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    found = [
        published(model, pool, Observation(client(b.inputs, b.labels), 8, 10), rng) for b in batches
    ]
    seconds = (time.perf_counter() - start) * scored / len(batches)
    rate = float(success(np.stack(found), np.stack([b.counts for b in batches])).mean())
    return Measured(seconds, {}, {PUBLISHED_LLG_PLUS: rate}, 0.0)


def _small_table(cell: dict[str, Measured], plain: Measured, simulated: int, scored: int) -> bool:
    first, second = cell.values()
    order = sorted(first.by_attack, key=lambda n: -first.by_attack[n] - second.by_attack[n])
    shown = [n for n in order if max(m.by_attack[n] for m in cell.values()) >= SHOWN]
    rows = [[name, *_pair(cell, name)] for name in shown]
    rest = [n for n in order if n not in shown]
    best = "best of them"
    rows.append(
        [
            f"{len(rest)} others",
            *(
                text
                for m in cell.values()
                for text in (
                    f"{sum(m.by_attack[n] for n in rest):.2f}",
                    f"{max((m.rates[n] for n in rest if n in m.rates), default=0):.2f} {best}",
                )
            ),
        ]
    )
    within = {name: m.seconds <= CELL_SECONDS for name, m in cell.items()}
    rows.append(["scored messages", *_victims(first), *_victims(second)])
    totals = [[f"{m.seconds:.1f}{'' if within[n] else ' NO'}", ""] for n, m in cell.items()]
    rows.append([f"all (at most {CELL_SECONDS:.0f} s)", *totals[0], *totals[1]])
    memory = [[f"{m.gibibytes:.2f}", ""] for m in cell.values()]
    rows.append(["peak GiB", *memory[0], *memory[1]])
    [(name, rate)] = plain.rates.items()
    rows.append([name, f"{plain.seconds:.1f}", f"{rate:.2f}", "", ""])
    print_table(
        f"MNIST, cnn-relu, B = 8, skewed, init: {simulated:,} simulated and {scored} scored "
        f"batches, {THREADS} threads",
        ["attack", *(text for n in cell for text in (f"{n}: s", "success rate"))],
        rows,
    )
    return all(within.values())


def _pair(cell: dict[str, Measured], name: str) -> list[str]:
    texts = []
    for found in cell.values():
        rate = found.rates.get(name)
        texts += [f"{found.by_attack[name]:.2f}", "-" if rate is None else f"{rate:.2f}"]
    return texts


def _victims(found: Measured) -> list[str]:
    return [f"{found.seconds - sum(found.by_attack.values()):.2f}", ""]


def _resnet_table(found: Measured, simulated: int) -> bool:
    order = sorted(found.by_attack, key=lambda n: -found.by_attack[n])
    rows = [[n, f"{found.by_attack[n]:.1f}", ""] for n in order if found.by_attack[n] >= 1]
    rows.append(["scored messages", _victims(found)[0], ""])
    rows.append(["all", f"{found.seconds:.0f}", f"{RESNET_SECONDS:.0f}"])
    rows.append(["peak GiB", f"{found.gibibytes:.2f}", f"{RESNET_GIB:.0f}"])
    print_table(
        f"ResNet-18, {CLASSES} classes, 32 x 32, B = 8, top-k 1 %: {simulated} simulated and "
        f"50 scored batches, {THREADS} threads",
        ["attack", "seconds", "at most"],
        rows,
    )
    return found.seconds <= RESNET_SECONDS and found.gibibytes <= RESNET_GIB


def _rlg_ratios() -> dict[tuple[int, int], float]:
    """One message read by RLG over one backward pass of cnn-relu on as many MNIST images."""
    found = {}
    for classes, size in ((10, 8), (100, 8), (100, 64)):
        bench = prepare(_study(40, 2, [], path=str(mnist_path())))
        images = bench.data.images[:size]
        labels = torch.randint(classes, (size,), generator=torch.Generator().manual_seed(0))
        model = bench.factory(bench.data.input_shape, classes)
        client = bench.study.defenses[0].client(model, seed=0)
        seen = Observation(client(images, labels), size, classes)
        fitted = RLG().fit(Knowledge())
        reading = _median(lambda s=seen, f=fitted: f.infer([s]))  # type: ignore[misc]
        passing = _median(lambda c=client, i=images, y=labels: c(i, y))  # type: ignore[misc]
        found[classes, size] = reading / passing
    return found


def _median(work: Callable[[], object], times: int = 9) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def _rlg_table(found: dict[tuple[int, int], float]) -> bool:
    most = f"{RLG_PASSES:.0f}"
    rows = [[str(c), str(size), f"{ratio:.1f}", most] for (c, size), ratio in found.items()]
    print_table(
        "RLG: time of a message over that of a backward pass of cnn-relu",
        ["classes", "B", "ratio", "at most"],
        rows,
    )
    return max(found.values()) <= RLG_PASSES
