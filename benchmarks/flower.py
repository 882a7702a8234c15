"""What a defence costs inside Flower: bytes, accuracy, time beside training, memory over rounds.

Bytes, accuracy and memory come from the example on Flower's own simulation engine; time is that of
the mod around the example's own training, in one process. Proportional memory is that of the
SuperLink and all it has started.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from flwr.app import Context, Message

from benchmarks.process_memory import mebibytes
from benchmarks.table import print_table
from tests.integrations.flower.exchange import Federation, in_a_run

EXAMPLE = Path(__file__).parents[1] / "examples" / "flower"
CLIENTS = 4
MOST_BYTES, MOST_TIME, MOST_GROWTH = 1 / 13, 0.05, 1.1
MESSAGES = 40


def main() -> bool:
    """Print all three; whether every target was met."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLE))
    try:
        met = [_overhead()]
        with importlib.import_module("engine").superlink("--simulation") as link:
            met += [_bytes(link), _memory(link)]
    finally:
        sys.path.remove(str(EXAMPLE))
    return all(met)


def _bytes(link: Any) -> bool:
    """Top-k on the wire beside the same defence as whole models, and no defence."""
    tables = {mode: _rows(link, mode) for mode in ("plain", "top-k-dense", "top-k")}
    header = ("mode", "accuracy by round", "bytes a client and round", "of dense")
    dense = _sent(tables["top-k-dense"])
    shown = [
        (
            mode,
            ", ".join(row[1] for row in rows),
            f"{_sent(rows):,.0f}",
            f"1/{dense / _sent(rows):.1f}",
        )
        for mode, rows in tables.items()
    ]
    print_table("bytes: top-k 5 %, target at most 1/13 of dense at equal accuracy", header, shown)
    equal = [r[1] for r in tables["top-k"]] == [r[1] for r in tables["top-k-dense"]]
    return equal and _sent(tables["top-k"]) <= MOST_BYTES * dense


def _rows(link: Any, mode: str) -> list[list[str]]:
    output = link.run(EXAMPLE, clients=CLIENTS, mode=mode)
    table = importlib.import_module("run").table_in(output, mode)
    if not table:
        raise RuntimeError(f"the example failed:\n{output}")
    return [line.split() for line in table.splitlines()[1:]]


def _sent(rows: list[list[str]]) -> float:
    return sum(float(row[2].replace(",", "")) for row in rows) / len(rows)


def _overhead() -> bool:
    """The mod's own time per message over a local epoch of the same client."""
    modes = ("plain", "top-k-dense", "top-k", "client-dp", "dp-sgd")
    found = {mode: _times(mode) for mode in modes}
    header = ("mode", "mod, ms", "local epoch, ms", "ratio", "epoch at 5 %, ms")
    rows = [
        (
            mode,
            f"{1e3 * mod:.2f}",
            f"{1e3 * epoch:.1f}",
            f"{mod / epoch:.1%}",
            f"{1e3 * mod / MOST_TIME:.0f}",
        )
        for mode, (mod, epoch) in found.items()
    ]
    print_table("time: mod per message over a local epoch, target at most 5 %", header, rows)
    return all(mod <= MOST_TIME * epoch for mod, epoch in found.values())


def _times(mode: str) -> tuple[float, float]:
    """Median seconds of the mod without training, and of one epoch of training."""
    app: Any = importlib.import_module("digits_app.client_app")
    logging.getLogger("gradguard").setLevel(logging.ERROR)  # that "plain" defends nothing is known
    logging.getLogger("flwr").setLevel(logging.ERROR)
    federation = Federation(initial=app.Net().state_dict(), clients=2)
    for number, context in enumerate(federation.contexts.values()):
        context.node_config.update({"partition-id": number, "num-partitions": CLIENTS})
        numbers = {"batch-size": 32, "learning-rate": 0.05, "local-epochs": 1}
        context.run_config.update(numbers, mode=mode)
    mods: list[float] = []
    epochs: list[float] = []
    train = app.train

    def timed_train(*arguments: Any) -> None:
        start = time.perf_counter()
        train(*arguments)
        epochs.append(time.perf_counter() - start)

    def answer(message: Message, context: Context) -> Message:
        inside: list[float] = []

        def timed_app(message: Message, context: Context) -> Message:
            start = time.perf_counter()
            reply: Message = app.fit(message, context)
            inside.append(time.perf_counter() - start)
            return reply

        start = time.perf_counter()
        reply: Message = app.guard(message, context, timed_app)
        mods.append(time.perf_counter() - start - sum(inside))
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        return reply

    app.train = timed_train
    try:
        with in_a_run():
            for _ in range(MESSAGES // 2):
                federation.play(lambda _: answer)
    finally:
        app.train = train
    return median(mods[4:]), median(epochs[4:])


def _memory(link: Any) -> bool:
    """Peak memory in rounds 11 to 20 over that in rounds 1 to 10, of ten clients."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            samples.append((time.time(), mebibytes(link.process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output = link.run(EXAMPLE, clients=10, mode="top-k", num_server_rounds=20)
    finally:
        done.set()
        watcher.join()
    first, half, last = (_when(output, mark) for mark in ("[ROUND 1/", "[ROUND 11/", "Strategy ex"))
    early = max(used for at, used in samples if first <= at < half)
    late = max(used for at, used in samples if half <= at <= last)
    shown = [(f"{early:,.0f}", f"{late:,.0f}", f"{late / early:.3f}")]
    header = ("rounds 1-10, MiB", "rounds 11-20, MiB", "ratio")
    print_table("memory: ten clients, target at most 1.1", header, shown)
    return late <= MOST_GROWTH * early


def _when(output: str, mark: str) -> float:
    """When a line of Flower's log was written, in seconds since 1970."""
    (line,) = (line for line in output.splitlines() if f":INFO:{mark}" in line)
    return datetime.strptime(line.split(":INFO:")[0], "%m/%d/%Y %H:%M:%S").timestamp()
