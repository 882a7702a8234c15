"""What transforms and the wire format cost, as multiples of copying the same gradients once.

``make bench`` prints one table and writes ``build/bench.json``. The copy is ``copy_`` tensor by
tensor between warm buffers: it is what the memory allows. Everything runs in turns in one process,
with two threads. Beside each operation stands the line of plain torch that a user would write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gradients import MODELS, Gradients, gradients
from benchmarks.guard_overhead import identity_ratio
from benchmarks.plain_torch import plain_lines
from benchmarks.table import print_table
from benchmarks.transient_memory import transient_memory
from benchmarks.turns import Work, in_turns
from benchmarks.wire_size import print_sizes
from gradguard import (
    AddGaussian,
    Cast,
    ClipByGlobalNorm,
    KeepTopK,
    MomentumCorrection,
    Quantize,
    Sign,
    wire,
)
from gradguard.core import Grads, InPlace, State
from gradguard.kernels.selection import Numbers, largest
from gradguard.transforms.casting import Format
from gradguard.transforms.sparsification import kept_of

RESULTS = Path("build/bench.json")
REPEATS = 9
COPY, NORMAL = "copy_", "normal_"
RATIOS = (0.001, 0.01, 0.1)
TOP_K = dict(zip(RATIOS, (6.0, 8.0, 16.0), strict=True))
DGC = {0.001: (9.0, 10.0), 0.01: (11.0, 13.0)}  # to tensors, to bytes
CASTS: tuple[Format, ...] = ("float16", "bfloat16", "float8_e4m3fn")


@dataclass(frozen=True)
class Result:
    """One measured operation; ``target`` is the most that was promised, if anything was."""

    operation: str
    model: str
    ratio: float
    target: float | None
    baseline_ms: float | None  # none where the unit is not a time
    plain: float | None = None  # the ratio of the plain torch line, where there is one


@dataclass(frozen=True)
class Operation:
    """Work on warm gradients, and the unit it is counted in."""

    work: Work
    target: float | None = None
    unit: str = COPY


class Bench:
    """Gradients that operations may overwrite; :meth:`refill` restores them."""

    def __init__(self, found: Gradients) -> None:
        self.names = list(found)
        self.source = list(found.values())
        self.warm = [g.clone() for g in self.source]

    def refill(self) -> None:
        for warm, source in zip(self.warm, self.source, strict=True):
            warm.copy_(source)

    def grads(self) -> Grads:
        return list(self.warm)

    def message(self, sent: Grads) -> dict[str, Tensor]:
        return {n: g for n, g in zip(self.names, sent, strict=True) if g is not None}

    def running(self, transform: InPlace) -> Callable[[], Grads]:
        """The transform in place, with the state of the run before."""
        state: list[State] = [transform.init(self.warm)]

        def step() -> Grads:
            sent, state[0] = transform.update_(self.grads(), state[0])
            return sent

        return step

    def to_bytes(self, transform: InPlace) -> Callable[[], bytes]:
        step = self.running(transform)
        return lambda: wire.encode(self.message(step()))


def main(*, repeats: int = REPEATS, models: tuple[str, ...] = tuple(MODELS)) -> bool:
    """Print the table and write it; true if every promise is kept.

    Args:
        repeats: Turns whose median counts.
        models: Whose gradients.
    """
    torch.set_num_threads(2)
    found = [r for model in models for r in _measured(model, repeats)]
    found += [_memory(model) for model in models]
    ratio, bare = identity_ratio()
    found.append(Result("guard with Identity / bare step", "ResNet-18", ratio, 1.02, bare))
    _show(found, repeats)
    met = all(r.target is None or r.ratio <= r.target for r in found)
    met &= print_sizes("ResNet-18")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n", encoding="utf-8")
    print(f"Written: {RESULTS}")
    return met


def _measured(model: str, repeats: int) -> list[Result]:
    bench = Bench(gradients(model)[0])
    ours, plain = operations(bench), plain_lines(bench.warm)
    timed: dict[str, Work] = {COPY: bench.refill, NORMAL: lambda: [g.normal_() for g in bench.warm]}
    timed |= {name: operation.work for name, operation in ours.items()}
    timed |= {f"plain {name}": work for name, work in plain.items()}
    seconds = in_turns(timed, before=bench.refill, repeats=repeats)
    return [_result(name, model, operation, seconds) for name, operation in ours.items()]


def _result(name: str, model: str, operation: Operation, seconds: Mapping[str, float]) -> Result:
    unit = seconds[operation.unit]
    plain = seconds.get(f"plain {name}")
    return Result(
        name,
        model,
        seconds[name] / unit,
        operation.target,
        1e3 * unit,
        None if plain is None else plain / unit,
    )


def operations(bench: Bench) -> dict[str, Operation]:
    """All that is timed, by the names of the table."""
    found = _sparse(bench)
    found["QSGD 4 bit, packed"] = Operation(bench.to_bytes(Quantize(4)), 14.0)
    found["sign + scale, packed"] = Operation(bench.to_bytes(Sign()), 6.0)
    found["sign + scale, to tensors"] = Operation(bench.running(Sign()))
    found["int8"] = Operation(bench.running(Cast("int8")), 3.0)
    for dtype in CASTS:
        found[f"cast {dtype}"] = Operation(bench.running(Cast(dtype)), 1.5)
    found["clip by global norm"] = Operation(bench.running(ClipByGlobalNorm(0.1)), 2.0)
    noise = bench.running(AddGaussian(0.1))
    found["Gaussian noise / normal_"] = Operation(noise, 1.2, unit=NORMAL)
    return found


def _sparse(bench: Bench) -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for ratio, target in TOP_K.items():
        found[f"exact top-k {ratio:.1%}, selection"] = Operation(_selection(bench, ratio), target)
        step = bench.running(KeepTopK(ratio))
        found[f"exact top-k {ratio:.1%}, to tensors"] = Operation(step)
    per_tensor = bench.running(KeepTopK(0.01, scope="tensor"))
    found["exact top-k 1.0%, each tensor"] = Operation(per_tensor)
    for ratio, (dense, encoded) in DGC.items():
        transform = MomentumCorrection(0.9, KeepTopK(ratio))
        found[f"DGC {ratio:.1%}, to tensors"] = Operation(bench.running(transform), dense)
        found[f"DGC {ratio:.1%}, to bytes"] = Operation(bench.to_bytes(transform), encoded)
    message = bench.message(KeepTopK(0.01).update(bench.grads(), {})[0])
    data = wire.encode(message)
    found["decode top-k 1.0% to dense"] = Operation(lambda: wire.decode(data), 3.0)
    return found


def _selection(bench: Bench, ratio: float) -> Work:
    flat = [g.view(-1) for g in bench.warm]
    count = kept_of(ratio, sum(map(len, flat)))
    return lambda: largest(Numbers((flat,), lambda part: part, flat), count)


def _memory(model: str) -> Result:
    most = transient_memory(model)
    return Result("transient memory of a DGC step / gradient", model, most, 0.1, None)


def _show(found: list[Result], repeats: int) -> None:
    rows = [
        [
            r.operation,
            r.model,
            f"{r.ratio:.3f}" if r.ratio < 2 else f"{r.ratio:.1f}",
            "" if r.target is None else f"{r.target:g}",
            "" if r.target is None else ("yes" if r.ratio <= r.target else "NO"),
            "" if r.plain is None else f"{r.plain:.1f}",
            "" if r.plain is None or r.ratio <= r.plain else "slower than plain torch",
        ]
        for r in found
    ]
    header = ["operation", "gradients of", "ratio", "at most", "met", "plain torch", ""]
    print_table(f"multiples of one warm copy, medians of {repeats} runs in turns", header, rows)
