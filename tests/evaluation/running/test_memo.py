from __future__ import annotations

import torch
from torch import nn

from gradguard import Defense
from gradguard.evaluation.models import build_model, mlp
from gradguard.evaluation.running.memo import GradientMemo, MemoisedClient

MODEL = build_model(mlp, input_shape=(1, 4, 4), num_classes=3, seed=0)
INPUTS, LABELS = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
NOISE = Defense.from_dict({"name": "n", "transform": [{"AddGaussian": {"stddev": 1.0}}]})
SIGN = Defense.from_dict({"name": "s", "transform": [{"Sign": {}}]})


def test_memoised_messages_are_those_of_the_plain_client() -> None:
    memo = GradientMemo(2**20)
    for defense in (SIGN, NOISE):
        plain, memoised = defense.client(MODEL, seed=1), defense.client(MODEL, seed=1)
        for _ in range(2):
            expected = plain(INPUTS, LABELS)
            found = MemoisedClient(memoised, memo)(INPUTS, LABELS)
            assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert memo.backward_passes == 1


def test_noise_is_drawn_afresh_for_a_known_batch() -> None:
    client = MemoisedClient(NOISE.client(MODEL, seed=1), GradientMemo(2**20))
    first, second = client(INPUTS, LABELS), client(INPUTS, LABELS)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_a_release_leaves_the_memo_unchanged() -> None:
    memo = GradientMemo(2**20)
    raw = [
        g.clone()
        for g in memo.gradients(SIGN.client(MODEL, seed=0), INPUTS, LABELS)
        if g is not None
    ]
    MemoisedClient(SIGN.client(MODEL, seed=0), memo)(INPUTS, LABELS)
    kept = memo.gradients(SIGN.client(MODEL, seed=0), INPUTS, LABELS)
    assert all(k is not None and torch.equal(r, k) for r, k in zip(raw, kept, strict=True))


def test_other_labels_or_inputs_are_another_batch() -> None:
    memo = GradientMemo(2**20)
    client = SIGN.client(MODEL, seed=0)
    memo.gradients(client, INPUTS, LABELS)
    memo.gradients(client, INPUTS, LABELS.flip(0))
    memo.gradients(client, INPUTS + 1, LABELS)
    assert memo.backward_passes == 3


def test_a_full_memo_holds_no_more_and_still_answers() -> None:
    size = sum(4 * p.numel() for p in MODEL.parameters())
    memo = GradientMemo(size)
    client = SIGN.client(MODEL, seed=0)
    for _ in range(2):
        memo.gradients(client, INPUTS, LABELS)
        memo.gradients(client, INPUTS + 1, LABELS)
    assert memo.held_bytes == size
    assert memo.backward_passes == 3


def _dropout_client(seed: int) -> MemoisedClient:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    plain = Defense("none", transform=[])
    return MemoisedClient(plain.client(model, seed=seed), GradientMemo(2**20))


def test_what_is_random_in_gradients_is_drawn_anew_in_every_round() -> None:
    inputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    first, second, third = list(_dropout_client(0).rounds(inputs, labels, 3))
    assert not torch.equal(first["0.weight"], second["0.weight"])
    assert not torch.equal(second["0.weight"], third["0.weight"])
    again = list(_dropout_client(0).rounds(inputs, labels, 3))
    assert torch.equal(again[2]["0.weight"], third["0.weight"])


def test_gradients_without_randomness_are_computed_once_for_all_rounds() -> None:
    model = nn.Linear(3, 2)
    client = Defense("none", transform=[]).client(model, seed=0)
    memo = GradientMemo(2**20)
    list(MemoisedClient(client, memo).rounds(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), 50))
    assert memo.backward_passes == 2  # the second one finds out
