"""A tiny NVFlare job on handwritten digits, and a server that writes down what it gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

RECORDS = "GRADGUARD_TEST_RECORDS"
"""The variable that names the folder for what the test compares."""

BROKEN = ("site-2", 1)
"""The site and round whose training has diverged."""


class Digits(nn.Module):
    """Few parameters, one of them a scalar, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("rounds", torch.tensor(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(inputs) * self.scale
        return logits


class DigitsTrainer(Executor):  # type: ignore[misc]
    """Trains for a few steps, and writes down the raw update that it hands to the filters."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer a training task."""
        site, now = fl_ctx.get_identity_name(), shareable.get_header(AppConstants.CURRENT_ROUND)
        before = from_shareable(shareable).data
        change = _trained(before, site)
        save(Path(os.environ[RECORDS]) / f"raw-{site}-{now}.npz", change)
        if (site, now) == BROKEN:
            change["scale"] = np.array(np.nan, dtype=np.float32)
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 5, "process": os.getpid()}
        result = DXO(DataKind.WEIGHT_DIFF, data=change, meta=meta).to_shareable()
        result.set_header(AppConstants.CURRENT_ROUND, now)
        return result


class Recorder(Filter):  # type: ignore[misc]
    """Writes down every result that the server gets, as it is at this place among its filters."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The result as it is."""
        site = fl_ctx.get_peer_context().get_identity_name()
        folder = Path(os.environ[RECORDS])
        number = len(list(folder.glob(f"{self.place}-{site}-*.json")))
        facts: dict[str, object] = {"code": shareable.get_return_code(), "bytes": 0}
        if shareable.get_return_code() == ReturnCode.OK:
            dxo = from_shareable(shareable)
            arrays = {k: v for k, v in dxo.data.items() if not isinstance(v, bytes)}
            save(folder / f"{self.place}-{site}-{number}.npz", arrays)
            facts |= {"kind": dxo.data_kind, "meta": dxo.meta}
            facts["bytes"] = sum(len(v) for v in dxo.data.values() if isinstance(v, bytes))
        # What is not a header; for a blocked result there should be nothing.
        facts["content"] = sorted(key for key in shareable if not key.startswith("__"))
        (folder / f"{self.place}-{site}-{number}.json").write_text(json.dumps(facts))
        return shareable


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays by name."""
    np.savez(path, **arrays)


def _trained(before: dict[str, np.ndarray], site: str) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    model = Digits()
    model.load_state_dict({name: torch.as_tensor(value) for name, value in before.items()})
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = load_digits(return_X_y=True)
    rows = slice(int(site[-1]) * 200, int(site[-1]) * 200 + 100)
    inputs, targets = torch.tensor(images[rows], dtype=torch.float32) / 16, labels[rows]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model(inputs), torch.tensor(targets)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: (new - start[name]).numpy() for name, new in model.state_dict().items()}
