"""GDBR: counts where the head is withheld."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradguard.attacks import GDBR, Knowledge, NotApplicableError, Observation
from gradguard.attacks.gdbr import mean_jacobian
from gradguard.evaluation.models import MODELS, build_model
from tests.attacks import mnist
from tests.attacks.local_training import cifar, draw, trained
from tests.attacks.models import (
    CLASSES,
    SIDE,
    FlatModel,
    batches,
    cnn,
    data,
    gradient,
    knowledge,
    overlap,
    skewed,
)


def dense(seed: int = 0, width: int = 12, *, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIDE * SIDE, width, bias=bias),
            nn.ReLU(),
            nn.Linear(width, CLASSES),
        )


@pytest.mark.parametrize("size", [1, 4, 30])
def test_exact_given_the_batchs_own_mean_confidence_and_one_jacobian(size: int) -> None:
    """Two dense layers without activation have the same Jacobian for all examples."""
    torch.manual_seed(size)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, CLASSES)).double()
    inputs, _ = data(max(size, 2))
    inputs, labels = inputs[:size].double(), torch.randint(CLASSES, (size,))
    seen = Observation(gradient(model, inputs, labels), size, CLASSES)
    fitted = GDBR().fit(knowledge(model, size, auxiliary=(inputs, labels)))
    assert fitted.name == "1.bias"
    assert fitted.infer([seen])[0].tolist() == torch.bincount(labels, minlength=CLASSES).tolist()


@pytest.mark.parametrize("model", [cnn(), dense()], ids=["convolution", "dense"])
def test_message_whose_head_is_zeros_is_read_alike(model: nn.Module) -> None:
    seen = [o for _, _, o in batches(model, skewed(10))]
    head = list(seen[0].update)[-2:]
    withheld = [
        replace(o, update={n: t * (n not in head) for n, t in o.update.items()}) for o in seen
    ]
    fitted = GDBR().fit(knowledge(model))
    assert torch.equal(fitted.infer(seen), fitted.infer(withheld))


def test_bridge_of_a_dense_layer_is_the_papers() -> None:
    """``diag(phi') W^T``, with the mean derivative of the activation; by the formula."""
    model = dense()
    inputs = data(30)[0]
    hidden, head = model[1], model[3]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(head, nn.Linear)
    active = (hidden(inputs.flatten(1)) > 0).double().mean(dim=0)
    expected = (head.weight.detach().double() * active).numpy()
    found = mean_jacobian(model, inputs, "1.bias", np.arange(12))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("make", [cnn, dense], ids=["convolution", "dense"])
def test_fresh_models_are_read_without_their_head(make: Callable[[int], nn.Module]) -> None:
    """Measured over ten models: convolution .89, dense .91; with the wrong sign .32 and less."""
    scores, turned = [], []
    for seed in range(10):
        model = make(seed)
        counts = skewed(10, seed=seed)
        seen = [o for _, _, o in batches(model, counts)]
        fitted = GDBR().fit(knowledge(model))
        scores.append(overlap(fitted.infer(seen), counts))
        wrong = [replace(o, update={n: -t for n, t in o.update.items()}) for o in seen]
        turned.append(overlap(fitted.infer(wrong), counts))
    assert np.mean(scores) > 0.83
    assert np.mean(turned) < 0.5


class _HeadFirst(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)
        self.last = nn.Linear(8, 6)
        self.unused = nn.Linear(8, 6)
        self.first = nn.Linear(SIDE * SIDE, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.last(self.first(inputs.flatten(1)).relu()).relu())
        return out


def test_layer_before_the_head_is_found_by_running_the_model() -> None:
    assert GDBR().fit(knowledge(_HeadFirst())).name == "last.bias"
    assert GDBR().fit(knowledge(cnn())).name == "2.weight"
    assert GDBR().fit(knowledge(dense(bias=False))).name == "1.weight"


def test_frozen_layers_are_passed_over() -> None:
    model = _HeadFirst()
    model.last.requires_grad_(False)
    assert GDBR().fit(knowledge(model)).name == "first.bias"


def test_normalisation_layers_are_passed_over() -> None:
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(12, CLASSES),
    )
    before = {n: t.clone() for n, t in model.state_dict().items()}
    fitted = GDBR().fit(knowledge(model.eval()))
    assert fitted.name == "1.weight" or fitted.name == "1.bias"
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_head_alone_is_not_applicable() -> None:
    with pytest.raises(NotApplicableError, match="before the head, got none"):
        GDBR().fit(knowledge(FlatModel()))


def test_too_narrow_layer_is_not_applicable() -> None:
    # One of its two units is dead.
    with pytest.raises(NotApplicableError, match="3 logits independently, it moves 1"):
        GDBR().fit(knowledge(dense(width=2)))


def test_layer_that_does_not_reach_the_logits_is_not_applicable() -> None:
    class Aside(_HeadFirst):
        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs.flatten(1))
            self.unused(hidden)
            out: Tensor = self.head(hidden[:, :6])
            return out

    with pytest.raises(NotApplicableError, match="it moves 0"):
        GDBR().fit(knowledge(Aside()))


def test_message_without_the_layer_is_refused() -> None:
    [(_, _, seen)] = batches(cnn(), skewed(1))
    fitted = GDBR().fit(knowledge(cnn()))
    head = {n: t for n, t in seen.update.items() if n.startswith("5.")}
    with pytest.raises(ValueError, match="sent as zeros"):
        fitted.infer([replace(seen, update=head)])
    with pytest.raises(ValueError, match="fitted for 4"):
        fitted.infer([replace(seen, num_classes=3)])


def scores(model: nn.Module, images: tuple[Tensor, Tensor], first: int) -> dict[int, float]:
    """Success on 40 batches each, skewed; the head's gradient replaced by zeros."""
    inputs, labels = images
    known = Knowledge(
        model=model, auxiliary=(inputs[first - 1000 : first], labels[first - 1000 : first]),
        num_classes=10,
    )  # fmt: skip
    fitted = GDBR().fit(known)
    rng = np.random.default_rng(0)
    found = {}
    for size in (8, 64):
        drawn = [draw(inputs[first:], labels[first:], size, "skewed", rng) for _ in range(40)]
        seen = []
        for x, y, _ in drawn:
            update = {n: t * (not n.startswith("head")) for n, t in gradient(model, x, y).items()}
            seen.append(Observation(update, size, 10))
        found[size] = overlap(fitted.infer(seen), np.stack([counts for _, _, counts in drawn]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn-relu", "llg-cnn", "lenet", "mlp"])
@pytest.mark.parametrize("colour", [False, True])
def test_withheld_head_of_fresh_models_is_no_defence(name: str, colour: bool) -> None:
    """The paper's abstract: "more than 80 % of labels in various FL settings".

    Measured, B = 8 / 64: MNIST .97/.94, 1.00/.96, 1.00/.99, .97/.94 in the order of the names,
    CIFAR-10 .93/.91, 1.00/.96, 1.00/1.00, 1.00/.97; one model each. The flat guess has .35/.39.
    """
    images, first = (cifar(), 3500) if colour else (mnist.images(), mnist.AUXILIARY)
    shape = tuple(images[0].shape[1:])
    model = build_model(MODELS[name], input_shape=shape, num_classes=10, seed=1)
    assert min(scores(model, images, first).values()) > 0.85


@pytest.mark.slow
def test_four_fifths_are_not_reached_on_a_trained_model() -> None:
    """Not reproduced there: measured .39 at B = 8 and .43 at B = 64, 300 steps (.94 accuracy).

    The abstract does not say how far its models were trained. The mean Jacobian is that of the
    average image; a trained model's gradient is that of the few images that it gets wrong.
    """
    images = mnist.images()
    model = build_model(MODELS["cnn-relu"], input_shape=(1, 28, 28), num_classes=10, seed=1)
    model = trained(model, images[0][:4000], images[1][:4000], 300)
    assert max(scores(model, images, mnist.AUXILIARY).values()) < 0.6
