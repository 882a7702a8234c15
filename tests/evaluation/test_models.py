from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gradguard.attacks.head import find_head
from gradguard.evaluation import UnusableInputError
from gradguard.evaluation.models import MODELS, Factory, build_model, find_factory


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20)])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_classifies_and_names_its_output_layer_head(
    name: str, shape: tuple[int, ...]
) -> None:
    model = build_model(MODELS[name], input_shape=shape, num_classes=7, seed=0)
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    assert find_head(dict(model.named_parameters()), 7).layer == "head"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_seed_decides_the_weights_and_leaves_the_global_state_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        torch.nn.utils.parameters_to_vector(
            build_model(MODELS[name], input_shape=(1, 8, 8), num_classes=4, seed=seed).parameters()
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_llg_cnn_draws_every_parameter_between_minus_and_plus_a_half() -> None:
    model = build_model(MODELS["llg-cnn"], input_shape=(1, 28, 28), num_classes=10, seed=0)
    for parameter in model.parameters():
        assert parameter.abs().max() <= 0.5
        assert parameter.abs().max() > 0.3
    assert sum(isinstance(m, nn.Sigmoid) for m in model.modules()) == 3


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda shape, classes: nn.Flatten(), "expected outputs"),
        (lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), "failed on images"),
        (lambda shape, classes: "model", "not an nn.Module"),
        (
            lambda shape, classes: nn.Sequential(
                nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Softmax(dim=1)
            ),
            "expected an output layer",
        ),
    ],
)
def test_an_unusable_model_is_refused_in_one_line(factory: Factory, said: str) -> None:
    with pytest.raises(UnusableInputError, match=said) as caught:
        build_model(factory, input_shape=(1, 8, 8), num_classes=4, seed=0)
    assert "\n" not in str(caught.value)


def test_own_factories_are_called_with_shape_and_classes_or_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from torch import nn
def takes(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
NUMBER = 3
"""
    (tmp_path / "own_models_here.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("takes", "bare"):
        factory = find_factory(None, f"own_models_here:{name}")
        assert factory((1, 8, 8), 4)(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    for spec, said in [
        ("own_models_here:NUMBER", "not callable"),
        ("own_models_here:other", "no attribute"),
        ("no_such_module_anywhere:make", "No module named"),
        ("own_models_here", "must be 'module:callable'"),
    ]:
        with pytest.raises(UnusableInputError, match=said):
            find_factory(None, spec)


def test_an_unknown_model_name_offers_the_nearest() -> None:
    with pytest.raises(UnusableInputError, match="did you mean 'lenet'"):
        find_factory("lenet5", None)


class Misleading(nn.Module):
    """Its last matrix by position is not the one that its outputs come from."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(64, 9), nn.Linear(9, 4), nn.Linear(9, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(torch.relu(self.body(images.flatten(1))))
        return outputs


class Bare(nn.Module):
    """Its output layer is a parameter and no ``nn.Linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, 4))
    model[2].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Misleading, "'head' is computed last"),
        (Bare, "to be nn.Linear"),
        (frozen, "expected an output layer"),
    ],
)
def test_a_model_whose_head_the_attacks_would_miss_is_refused(
    make: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(UnusableInputError, match=said):
        build_model(lambda shape, classes: make(), input_shape=(1, 8, 8), num_classes=4, seed=0)


def test_models_from_a_factory_that_returns_one_object_share_no_parameter() -> None:
    only = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    first, second = (
        build_model(lambda shape, classes: only, input_shape=(1, 8, 8), num_classes=4, seed=0)
        for _ in range(2)
    )
    for parameter in first.parameters():
        parameter.data.zero_()
    assert all(parameter.any() for parameter in (*only.parameters(), *second.parameters()))


def test_a_factory_that_exits_is_an_error_and_no_success() -> None:
    def leave(shape: tuple[int, ...], classes: int) -> nn.Module:
        sys.exit(0)

    with pytest.raises(UnusableInputError, match="model: failed"):
        build_model(leave, input_shape=(1, 8, 8), num_classes=4, seed=0)


def test_own_factories_can_be_sent_to_another_process_even_lambdas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    (tmp_path / "own_lambda_here.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sent = pickle.loads(pickle.dumps(find_factory(None, "own_lambda_here:make")))
    assert sent((1, 8, 8), 4)(torch.rand(2, 1, 8, 8)).shape == (2, 4)
