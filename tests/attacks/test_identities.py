"""The identities that all label attacks rest on, checked on gradients from autograd."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gradguard.attacks.bias_count import FittedBiasCount
from tests.attacks.models import CLASSES, batches, cnn, overlap, skewed


def test_counts_are_the_batch_times_mean_confidence_minus_bias_gradient() -> None:
    model = cnn().double()
    counts = skewed(5)
    for (inputs, _, seen), row in zip(batches(model, counts), counts, strict=True):
        confidence = model(inputs).softmax(1).mean(0)
        found = 8 * (confidence - seen.update["5.bias"])
        np.testing.assert_allclose(found.detach().numpy(), row, atol=1e-10)


def test_weight_gradient_is_the_mean_of_error_times_features() -> None:
    model = cnn().double()
    for inputs, labels, seen in batches(model, skewed(3)):
        features = model[:5](inputs)
        error = model(inputs).softmax(1) - nn.functional.one_hot(labels, CLASSES)
        torch.testing.assert_close(seen.update["5.weight"], (error.T @ features) / len(labels))


def test_head_gradients_sum_to_zero_over_the_classes() -> None:
    for _, _, seen in batches(cnn().double(), skewed(3)):
        assert seen.update["5.weight"].sum(0).abs().max() < 1e-14
        assert seen.update["5.bias"].sum().abs() < 1e-14


def test_negative_row_sum_means_present_where_features_are_not_negative() -> None:
    for seed in range(5):
        counts = skewed(10, seed=seed)
        for (_, _, seen), row in zip(batches(cnn(seed), counts), counts, strict=True):
            assert (row[seen.update["5.weight"].sum(1).numpy() < 0] > 0).all()


def test_negative_bias_gradient_means_present() -> None:
    for seed in range(5):
        counts = skewed(10, seed=seed)
        for (_, _, seen), row in zip(batches(cnn(seed), counts), counts, strict=True):
            assert (row[seen.update["5.bias"].numpy() < 0] > 0).all()


def test_gradient_of_any_layer_is_linear_in_the_per_class_gradients() -> None:
    model = cnn().double()
    ((inputs, labels, seen),) = batches(model, np.array([[4, 3, 0, 1]]))
    for name, whole in seen.update.items():
        parts = []
        for label in (0, 1, 3):
            rows = labels == label
            loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            (part,) = torch.autograd.grad(loss, [dict(model.named_parameters())[name]])
            parts.append(part * int(rows.sum()))
        torch.testing.assert_close(whole * 8, sum(parts))


def test_exact_on_an_undefended_gradient_given_the_batchs_own_mean_confidence() -> None:
    model = cnn(sigmoid=True)
    counts = skewed(10)
    for (inputs, _, seen), row in zip(batches(model, counts), counts, strict=True):
        confidence = tuple(model(inputs).softmax(1).mean(0).tolist())
        assert overlap(FittedBiasCount(confidence).infer([seen]), row[None]) == 1.0
