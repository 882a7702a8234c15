"""How much memory a step takes beyond gradients and state, its first included, in a new process.

Linux only: the peak is reset and read in ``/proc/self``. Every larger allocation is made to go back
to the system when it is freed, or what an earlier one left behind would hide a later one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

STEPS = 3


def transient_memory(model: str) -> float:
    """Peak of the memory in use in a DGC step of 1 %, less that before, over the gradient's."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.transient_memory", model],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, size = map(int, run.stdout.split())
    return peak / size


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024


def _main(name: str) -> None:
    import torch

    from benchmarks.gradients import CLASSES, MODELS
    from gradguard import KeepTopK, MomentumCorrection

    rng = torch.Generator().manual_seed(0)
    params = list(MODELS[name]((3, 64, 64), CLASSES).parameters())
    grads = [torch.randn(p.shape, generator=rng) for p in params]
    transform = MomentumCorrection(0.9, KeepTopK(0.01))
    state = transform.init(params)
    tiny = [torch.rand(20_000, generator=rng)]
    transform.update_([*tiny], transform.init(tiny))  # loads code: not what a step takes
    highest = 0
    for _ in range(STEPS):
        for grad in grads:
            grad.normal_(generator=rng)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        _, state = transform.update_(list(grads), state)
        highest = max(highest, _status("VmHWM") - before)
    print(highest, sum(4 * p.numel() for p in params))


if __name__ == "__main__":
    _main(sys.argv[1])
