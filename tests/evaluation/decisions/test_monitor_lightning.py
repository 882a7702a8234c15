"""A monitor in the loop of a real Lightning trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from gradguard import AddGaussian, KeepTopK, guard
from gradguard.evaluation import LeakageError, monitor_lightning
from tests.evaluation.decisions.messages import AUXILIARY, BATCH, net, victims

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and its own imports
        yield


def module(transform: Any) -> Any:
    import lightning

    class Digits(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.net(images)
            return scores

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            plain = torch.optim.SGD(self.parameters(), lr=0.1)
            return plain if transform is None else guard(plain, transform, model=self)

    return Digits()


def fit(model: Any, callback: Any, folder: Path, steps: int = 5) -> None:
    import lightning

    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    trainer.fit(model, DataLoader(TensorDataset(*victims(64)), batch_size=BATCH))


def watching(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "every": 2,
        "attackers": ["LLG", "TemplateRegression(head)"],
        "calibration": 10,
        "trials": 30,
        "simulated": 60,
        "log": [],
    }
    return monitor_lightning(
        auxiliary=(AUXILIARY.images, AUXILIARY.labels), batch_size=BATCH, **(settings | changes)
    )


def test_it_measures_on_schedule_in_a_real_trainer(tmp_path: Path) -> None:
    callback = watching(mode="own state")
    fit(module(KeepTopK(0.05)), callback, tmp_path)
    assert [found.step for found in callback.monitor.history] == [0, 2, 4]
    assert callback.monitor.history[0].advantage_ci[0] > 0.3


def test_training_is_bitwise_that_without_a_monitor(tmp_path: Path) -> None:
    import lightning

    ends = []
    for callback in (watching(), lightning.Callback()):
        torch.manual_seed(0)
        model = module(KeepTopK(0.05))
        fit(model, callback, tmp_path)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_block_stops_the_trainer_before_the_first_step(tmp_path: Path) -> None:
    model = module(KeepTopK(0.05))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(LeakageError):
        fit(model, watching(action="block", max_advantage=0.2), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    fit(module(AddGaussian(100.0)), watching(action="block", max_advantage=0.5), tmp_path)


def test_an_optimizer_without_a_guard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="needs a guarded optimizer"):
        fit(module(None), watching(), tmp_path)
