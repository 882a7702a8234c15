"""Two real processes with gloo between them, and what they found out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Scenario = Callable[[int], dict[str, Any]]
ROOT = Path(__file__).parent.parent.parent
_PATIENCE = 60.0  # seconds: a hang fails the test instead of holding it up


def run(scenario: Scenario, folder: Path, *, ranks: int = 2) -> list[dict[str, Any]]:
    """Call ``scenario(rank)`` in as many processes and return what each of them returned."""
    where = f"{scenario.__module__}:{scenario.__name__}"
    logs = [(folder / f"rank{rank}.log") for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        arguments = [where, str(rank), str(ranks), str(folder)]
        with log.open("w") as stream:
            command = [sys.executable, "-W", "error", "-m", __name__, *arguments]
            processes.append(subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT))
    try:
        deadline = time.monotonic() + _PATIENCE
        for process in processes:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    told = "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)
    assert [process.returncode for process in processes] == [0] * ranks, told
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def _main() -> None:
    where, rank, ranks, folder = sys.argv[1:]
    module, _, name = where.partition(":")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=int(rank),
        world_size=int(ranks),
        timeout=timedelta(seconds=_PATIENCE / 2),
    )
    result = getattr(__import__(module, fromlist=[name]), name)(int(rank))
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def model() -> nn.Sequential:
    """The same small network in every process, with a kernel whose layout is not row by row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 40), nn.ReLU(),
            nn.Linear(40, 5),
        )  # fmt: skip
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """A rank's own data in a step."""
    rng = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(4, 2, 6, 6, generator=rng), torch.randint(5, (4,), generator=rng)


def loss_of(net: nn.Module, rank: int, step: int) -> Tensor:
    """The mean loss over a rank's own batch."""
    inputs, labels = batch(rank, step)
    loss: Tensor = nn.functional.cross_entropy(net(inputs), labels)
    return loss


def flat(tensors: Any) -> Tensor:
    """All tensors laid end to end, as a copy."""
    return torch.cat([t.detach().reshape(-1).clone() for t in tensors])


if __name__ == "__main__":
    _main()
