"""Template regression on a model of 25 million parameters stays within its memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import resource
import torch
from torch import nn
from gradguard.attacks import Knowledge, Observation, TemplateRegression

torch.manual_seed(0)
torch.set_num_threads(1)
classes, width = 100, 3000
model = nn.Sequential(
    nn.Linear(5200, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
)
parameters = dict(model.named_parameters())
assert sum(p.numel() for p in parameters.values()) > 24_900_000

def client(inputs, labels):
    loss = nn.functional.cross_entropy(model(inputs), labels)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))

inputs, labels = torch.rand(400, 5200), torch.arange(400) % classes
inputs[:, :classes] += 3 * torch.eye(classes)[labels]
known = Knowledge(
    model=model,
    auxiliary=(inputs, labels),
    client=client,
    num_classes=classes,
    batch_size=8,
    composition="skewed",
)
rows = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
rows = rows + classes * (torch.arange(8) % 4)  # other examples of the same classes
message = Observation(client(inputs[rows], labels[rows]), 8, classes)
for part in ("head", "all"):
    counts = TemplateRegression(part).fit(known).infer([message])[0]
    right = torch.minimum(counts, torch.bincount(labels[rows], minlength=classes)).sum().item()
    print("overlap", part, right)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in kilobytes")
def test_memory_is_bounded_on_25_million_parameters_and_100_classes() -> None:
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    lines = dict(line.rsplit(" ", 1) for line in found.stdout.splitlines())
    assert int(lines["peak"]) < 4 * 2**20  # kilobytes
    assert int(lines["overlap head"]) >= 7
    assert int(lines["overlap all"]) >= 7
