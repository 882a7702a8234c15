"""The client that is attacked: bounded sums, right noise, and what is deployed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradguard import DPSGD, AddGaussian, Defense, KeepTopK, chain
from gradguard.core import GradTransform
from gradguard.dp import PrivateClient
from tests.dp.setting import backward, batch, network, private

MODES = ["hooks", "ghost"]


def _vector(message: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in message.values()])


def _sum(client: PrivateClient, inputs: Tensor, labels: Tensor) -> Tensor:
    grads = client.gradients(inputs, labels)
    return torch.cat([g.flatten() for g in grads if g is not None])


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_that_of_gradients_clipped_one_by_one(mode: str) -> None:
    inputs, labels = batch(6, scale=3.0)
    model = network()
    client = PrivateClient(model, DPSGD(1.0, 0.7, mode=mode), chain())
    expected = torch.zeros(sum(p.numel() for p in model.parameters()))
    for x, y in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        one = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        expected += one * min(1.0, 0.7 / float(one.norm()))
    torch.testing.assert_close(_sum(client, inputs, labels), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.floats(0.1, 1e4), st.floats(0.01, 10.0), st.sampled_from(MODES))
def test_one_more_example_moves_the_sum_by_at_most_the_clipping_norm(
    seed: int, scale: float, norm: float, mode: str
) -> None:
    inputs, labels = batch(5, scale=scale, seed=seed)
    client = PrivateClient(network(), DPSGD(1.0, norm, mode=mode), chain())
    moved = _sum(client, inputs, labels) - _sum(client, inputs[:4], labels[:4])
    assert float(moved.norm()) <= norm * (1 + 1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [None, 5])
def test_the_noise_has_the_standard_deviation_that_the_certificate_assumes(
    mode: str, size: int | None
) -> None:
    client = PrivateClient(network(), DPSGD(3.0, 0.5, mode=mode), chain(), batch_size=size, seed=0)
    inputs, labels = batch(4)
    grads = client.gradients(inputs, labels)
    drawn = torch.stack([_vector(client.release(grads, batch_size=4)) for _ in range(2000)])
    expected = 3.0 * 0.5 / (size or 4)
    assert float(drawn.std(0).mean()) == pytest.approx(expected, rel=0.02)
    torch.testing.assert_close(
        drawn.mean(0), _sum(client, inputs, labels) / (size or 4), atol=5 * expected / 44, rtol=0
    )


def test_the_noise_reaches_parameters_without_dimensions() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 2), nn.Parameter(torch.tensor(2.0))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(inputs) * self.scale  # type: ignore[no-any-return]

    client = PrivateClient(Scaled(), DPSGD(1.0, 1.0), chain(), seed=0)
    inputs, labels = batch(4)
    grads = client.gradients(inputs, labels)
    scales = torch.stack([client.release(grads, batch_size=1)["scale"] for _ in range(500)])
    assert float(scales.std()) == pytest.approx(1.0, rel=0.15)


def test_a_training_releases_what_the_client_releases() -> None:
    inputs, labels = batch(8)
    training = private(after=KeepTopK(0.3), noise_multiplier=1e-9)
    backward(training, inputs, labels)
    deployed = training.release()
    defense = Defense("same", dp=DPSGD(1e-9, 1.0), transform=KeepTopK(0.3))
    attacked = defense.client(network(), batch_size=8)(inputs, labels)
    assert deployed is not None
    assert list(deployed) == list(attacked)
    torch.testing.assert_close(_vector(deployed), _vector(attacked), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("transform", [chain(), chain(KeepTopK(0.5)), chain(AddGaussian(0.1))])
def test_a_seed_repeats_the_messages_and_no_two_of_them_share_noise(
    transform: GradTransform,
) -> None:
    inputs, labels = batch(4)

    def messages(seed: int | None) -> list[Tensor]:
        client = PrivateClient(network(), DPSGD(1.0, 1.0), transform, seed=seed)
        return [_vector(client(inputs, labels)) for _ in range(2)]

    (a, b), (c, d), (e, _) = messages(1), messages(1), messages(None)
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.equal(a, b)
    assert not torch.equal(a, e)


def test_the_model_given_is_not_changed_and_gradients_are_not_modified() -> None:
    model = network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    client = PrivateClient(model, DPSGD(1.0, 1.0), chain(KeepTopK(0.1)), seed=0)
    inputs, labels = batch(4)
    grads = client.gradients(inputs, labels)
    kept = [None if g is None else g.clone() for g in grads]
    client.release(grads, batch_size=4)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(grads, kept, strict=True)
        if a is not None and b is not None
    )


def test_what_sums_are_divided_by_must_be_known() -> None:
    client = PrivateClient(network(), DPSGD(1.0, 1.0), chain())
    grads = client.gradients(*batch(4))
    with pytest.raises(ValueError, match="batch_size"):
        client.release(grads)
    with pytest.raises(ValueError, match="at least 1"):
        PrivateClient(network(), DPSGD(1.0, 1.0), chain(), batch_size=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_convolution_is_summed_alike_before_and_after_a_release(mode: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    inputs, labels = torch.arange(48.0).view(3, 1, 4, 4) / 48, torch.tensor([0, 1, 1])
    client = PrivateClient(model, DPSGD(1.0, 0.5, mode=mode), chain(), seed=0)
    before = _sum(client, inputs, labels)
    client(inputs, labels)
    assert torch.equal(_sum(client, inputs, labels), before)
