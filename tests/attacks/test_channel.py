"""What a defence does to a gradient, learned from pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard.attacks.coordinates import Coordinates
from gradguard.attacks.templates.channel import (
    Rehearsal,
    draw_batches,
    drops_coordinates,
    learn_channel,
    read_message,
    rehearse_pairs,
)
from tests.attacks.models import CLASSES, cnn, gradient, knowledge

RNG = np.random.default_rng(0)
RAW = RNG.normal(size=(400, 30)).astype(np.float32)
TENSORS = np.repeat([0, 1], [10, 20])
COUNTS = np.ones((400, 4), dtype=np.int64)


def test_scale_of_each_tensor_is_found() -> None:
    sent = RAW * np.where(TENSORS == 0, 0.5, 3.0).astype(np.float32)
    channel = learn_channel(Rehearsal(RAW, sent, COUNTS), TENSORS, masked=False)
    np.testing.assert_allclose(channel.scale, np.where(TENSORS == 0, 0.5, 3.0), rtol=1e-5)
    np.testing.assert_allclose(channel.noise, 0, atol=1e-10)


def test_additive_noise_is_found_within_a_third() -> None:
    sent = RAW + 0.3 * RNG.normal(size=RAW.shape).astype(np.float32)
    channel = learn_channel(Rehearsal(RAW, sent, COUNTS), TENSORS, masked=False)
    assert (np.abs(channel.noise / 0.09 - 1) < 1 / 3).all()


def test_random_sparsifier_has_no_noise_where_zeros_are_left_out() -> None:
    sent = (RAW * (RNG.random(RAW.shape) < 0.1) / 0.1).astype(np.float32)
    rehearsal = Rehearsal(RAW, sent, COUNTS)
    assert drops_coordinates(rehearsal)
    masked = learn_channel(rehearsal, TENSORS, masked=True)
    np.testing.assert_allclose(masked.scale, 10, rtol=1e-5)
    np.testing.assert_allclose(masked.noise, 0, atol=1e-8)
    unmasked = learn_channel(rehearsal, TENSORS, masked=False)
    np.testing.assert_allclose(unmasked.scale, 1, atol=0.3)
    assert (unmasked.noise > 1).all()


def test_tensor_that_is_never_sent_has_scale_zero() -> None:
    sent = np.where(TENSORS == 0, np.float32(0), RAW)
    for masked in (True, False):
        channel = learn_channel(Rehearsal(RAW, sent, COUNTS), TENSORS, masked=masked)
        assert (channel.scale[TENSORS == 0] == 0).all()
        np.testing.assert_allclose(channel.scale[TENSORS == 1], 1, rtol=1e-5)


def test_dense_message_drops_nothing() -> None:
    raw = np.where(RAW < 0, 0, RAW)  # zeros of the gradient itself
    assert not drops_coordinates(Rehearsal(raw, raw, COUNTS))


def test_rehearsed_pairs_of_an_undefended_client_are_equal() -> None:
    known = knowledge(cnn())
    coordinates = Coordinates(dict.fromkeys(n for n, _ in cnn().named_parameters()))
    rehearsal = rehearse_pairs(known, draw_batches(known, 5), coordinates)
    sent = rehearsal.sent / rehearsal.unit
    np.testing.assert_allclose(rehearsal.raw, sent, rtol=1e-5, atol=1e-7)
    assert rehearsal.counts.shape == (5, CLASSES)
    assert (rehearsal.counts.sum(axis=1) == 8).all()


def test_incomplete_or_infinite_messages_are_refused() -> None:
    coordinates = Coordinates({"a": None, "b": None})
    with pytest.raises(ValueError, match="zeros for what is withheld"):
        read_message({"a": torch.zeros(2)}, coordinates)
    with pytest.raises(ValueError, match="finite"):
        read_message({"a": torch.zeros(2), "b": torch.tensor([torch.inf])}, coordinates)


def test_a_client_that_draws_from_the_global_generator_is_not_rewound() -> None:
    """Otherwise its next messages would have the noise that the attacker rehearsed on."""

    def client(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {name: torch.randn_like(p) for name, p in cnn().named_parameters()}

    known = knowledge(cnn(), client=client)
    coordinates = Coordinates(dict.fromkeys(n for n, _ in cnn().named_parameters()))
    rehearsal = rehearse_pairs(known, draw_batches(known, 3), coordinates)
    after = coordinates.read(client(torch.zeros(0), torch.zeros(0))) * rehearsal.unit
    assert not any(np.array_equal(after, one) for one in rehearsal.sent)


def test_gradients_of_a_model_with_dropout_are_the_same_again_whatever_the_global_state() -> None:
    model = torch.nn.Sequential(cnn(), torch.nn.Dropout())

    def client(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {f"0.{n}": t for n, t in gradient(cnn(), inputs, labels).items()}

    known = knowledge(model, client=client)
    coordinates = Coordinates(dict.fromkeys(n for n, _ in model.named_parameters()))
    raw = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        raw.append(rehearse_pairs(known, draw_batches(known, 3), coordinates).raw)
    np.testing.assert_array_equal(raw[0], raw[1])


def test_all_messages_are_read_in_the_unit_of_the_first_that_is_not_zero() -> None:
    sizes = iter([0.0, 0.75, 3.0])

    def client(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        size = next(sizes)
        return {name: torch.full_like(p, size) for name, p in cnn().named_parameters()}

    known = knowledge(cnn(), client=client)
    coordinates = Coordinates(dict.fromkeys(n for n, _ in cnn().named_parameters()))
    rehearsal = rehearse_pairs(known, draw_batches(known, 3), coordinates)
    assert rehearsal.unit == 1
    assert rehearsal.sent[:, 0].tolist() == [0.0, 0.75, 3.0]
