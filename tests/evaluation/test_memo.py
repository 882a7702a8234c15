from __future__ import annotations

import torch

from gradguard import Defense
from gradguard.evaluation.memo import GradientMemo, MemoisedClient
from gradguard.evaluation.models import build_model, mlp

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
