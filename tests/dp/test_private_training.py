"""make_private in training loops: checkpoints, schedulers, frozen parameters, bad arguments."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from gradguard import DPSGD, Defense, ErrorFeedback, KeepTopK, Sign, chain
from gradguard.dp import PrivateTraining
from tests.dp.setting import backward, batch, data, epoch, flat, network, private, step
from tests.optimizer.training import differentiate

MODES = ["hooks", "ghost"]


def _stored(training: PrivateTraining) -> tuple[Any, Any, str]:
    model = copy.deepcopy(training.model.state_dict())
    return model, copy.deepcopy(training.optimizer.state_dict()), json.dumps(training.state_dict())


def _resumed(stored: tuple[Any, Any, str], **options: Any) -> PrivateTraining:
    training = private(**options)
    training.model.load_state_dict(stored[0])
    training.optimizer.load_state_dict(stored[1])
    training.load_state_dict(json.loads(stored[2]))
    return training


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_is_bitwise_the_same_noise_sampling_and_ledger_included(mode: str) -> None:
    options: dict[str, Any] = {"mode": mode, "after": chain(ErrorFeedback(KeepTopK(0.2)), Sign())}

    def with_momentum() -> dict[str, Any]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {**options, "model": model, "optimizer": optimizer}

    straight = private(**with_momentum())
    epoch(straight)
    stored = _stored(straight)
    epoch(straight)
    resumed = _resumed(stored, **with_momentum())
    assert resumed.releases == resumed.ledger.releases == 8
    epoch(resumed)
    assert torch.equal(flat(straight.model), flat(resumed.model))
    pairs = zip(straight.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.state_dict() == straight.state_dict()
    assert resumed.epsilon(1e-5) == straight.epsilon(1e-5)


def test_a_state_with_fewer_releases_than_were_made_here_is_refused() -> None:
    training = private()
    before = training.state_dict()
    step(training, *batch())
    with pytest.raises(ValueError, match="before the first step"):
        training.load_state_dict(before)
    with pytest.raises(ValueError, match="not the state of a private training"):
        private().load_state_dict({"ledger": 1})


def test_a_simulation_stays_one_when_it_is_resumed() -> None:
    training = private(seed=1)
    step(training, *batch())
    resumed = _resumed(_stored(training))
    with pytest.raises(RuntimeError, match="simulation"):
        resumed.epsilon(1e-5)


def test_schedulers_change_the_learning_rate_of_the_inner_optimizer() -> None:
    training = private()
    schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, step_size=1, gamma=0.5)
    for _ in range(3):
        step(training, *batch())
        schedule.step()
    assert training.guard.inner.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
    assert training.releases == 3


@pytest.mark.parametrize("mode", MODES)
def test_frozen_parameters_are_neither_released_nor_changed(mode: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = private(model=model, optimizer=optimizer, mode=mode)
    weight = next(model.parameters())
    before = weight.clone()
    step(training, *batch())
    assert torch.equal(weight, before)
    training.optimizer.zero_grad()
    backward(training, *batch())  # given up: no step follows
    training.optimizer.zero_grad()
    backward(training, *batch())
    assert list(training.release() or {}) == ["2.weight", "2.bias"]


def test_a_raw_gradient_on_a_parameter_frozen_later_is_refused() -> None:
    model = network()
    inputs, labels = batch()
    differentiate(nn.functional.cross_entropy(model(inputs), labels))
    model[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match="set its grad to None"):
        private(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_other_optimizers_train(kind: Any) -> None:
    model = network()
    training = private(model=model, optimizer=kind(model.parameters(), lr=0.01))
    epoch(training)
    assert training.releases == 8


def test_lbfgs_is_refused_because_it_would_release_several_times_a_step() -> None:
    model = network()
    with pytest.raises(TypeError, match="several times"):
        private(model=model, optimizer=torch.optim.LBFGS(model.parameters()))


def test_a_model_with_batch_norm_is_refused_by_opacus() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with pytest.raises(Exception, match="BatchNorm"):
        private(model=model)


def test_the_next_round_takes_the_model_of_the_last() -> None:
    first = private()
    epoch(first)
    second = private(
        model=first.model,
        optimizer=torch.optim.SGD(first.model.parameters(), lr=0.1),
        ledger=first.ledger,
    )
    epoch(second)
    assert second.releases == 8
    assert second.ledger.releases == 16
    fresh = torch.optim.SGD(first.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another mode"):
        private(model=first.model, optimizer=fresh, mode="ghost")


def test_it_unpacks_as_model_optimizer_and_loader() -> None:
    training = private()
    model, optimizer, loader = training
    assert (model, optimizer, loader) == (training.model, training.optimizer, training.loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_multiplier": None}, "target_epsilon, target_delta and epochs"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier must be"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be"),
        ({"mode": "gost"}, "hooks, ghost"),
        ({"accountant": "pvr"}, "prv, rdp"),
        ({"epochs": 3}, "not both"),
        ({"target_epsilon": 1e4, "target_delta": 1e-5, "epochs": 1}, "promises nothing"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        private(**options)


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="this very model"):
        private(optimizer=optimizer)


def test_a_parameter_that_took_no_part_is_named_as_the_reason() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="2 of 4 parameters"):
        step(private(model=Partly()), *batch())


def test_a_defence_with_dp_attaches_as_a_private_training() -> None:
    defense = Defense("both", dp=DPSGD(2.0, 1.0, accountant="rdp"), transform=KeepTopK(0.1))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"attach\(model, optimizer, loader\)"):
        defense.attach(model, optimizer)
    attached = defense.attach(model, optimizer, DataLoader(data(), batch_size=8))
    assert isinstance(attached, PrivateTraining)
    epoch(attached)
    assert attached.ledger.history == [(2.0, 1 / 8, 8)]
    assert attached.ledger.accountant == "rdp"
    assert int(flat(attached.model).count_nonzero()) == round(0.1 * flat(attached.model).numel())


@pytest.mark.parametrize(
    "dp",
    [
        DPSGD(1.0, 1.0),
        DPSGD(0.5, (1.0, 2.0), delta=1e-6, accountant="rdp"),
        DPSGD(1, 2, mode="ghost"),
    ],
)
def test_a_defence_with_dp_survives_a_round_trip(dp: DPSGD) -> None:
    defense = Defense("private", dp=dp, transform=Sign())
    assert Defense.from_toml(defense.to_toml()) == defense
    assert Defense.from_json(defense.to_json()) == defense


@pytest.mark.parametrize(
    ("dp", "message"),
    [
        ({"noise_multiplier": 1.0}, "max_grad_norm"),
        ({"noise_multiplier": 1.0, "max_grad_nrom": 1.0}, "did you mean 'max_grad_norm'"),
        ({"noise_multiplier": 0, "max_grad_norm": 1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": True, "max_grad_norm": 1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": "1", "max_grad_norm": 1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": 1, "max_grad_norm": []}, "got none"),
        ({"noise_multiplier": 1, "max_grad_norm": 1, "accountant": "gdp"}, "less epsilon"),
        ({"noise_multiplier": 1, "max_grad_norm": 1, "delta": 1}, "delta must be"),
        (3, "expected a table"),
    ],
)
def test_a_bad_dp_table_is_one_line_that_names_the_defence(dp: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        Defense.from_dict({"name": "mine", "dp": dp, "transform": []})
    assert str(found.value).startswith("defence 'mine': dp")
    assert "\n" not in str(found.value)
