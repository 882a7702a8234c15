"""A constant in every message is measured and taken away; nothing else is mistaken for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradguard import AddGaussian, ClipByGlobalNorm, Defense, KeepTopK, Sign, Withhold
from gradguard.attacks.learned import LearnedRegression
from gradguard.attacks.learning.offset import constant_offset, without
from gradguard.attacks.threat import Knowledge
from tests.attacks.models import batches, cnn, gradient, knowledge, overlap, skewed

MODEL = cnn()
Message = dict[str, Tensor]


def _constant() -> Message:
    rng = torch.Generator().manual_seed(5)
    named = MODEL.named_parameters()
    return {name: 3 * torch.randn(p.shape, generator=rng) for name, p in named}


def _client(scale: float, constant: Message) -> Callable[[Tensor, Tensor], Message]:
    def send(inputs: Tensor, labels: Tensor) -> Message:
        raw = gradient(MODEL, inputs, labels)
        return {name: scale * g + constant[name] for name, g in raw.items()}

    return send


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_noise_from_a_public_seed_is_found_and_taken_away(scale: float) -> None:
    constant = _constant()
    found = constant_offset(knowledge(MODEL, client=_client(scale, constant)))
    assert found is not None
    for name, value in constant.items():
        torch.testing.assert_close(found[name].float(), value, atol=1e-4, rtol=1e-4)
    kept = without({n: t + 1 for n, t in constant.items()}, found)
    torch.testing.assert_close(kept["5.bias"], torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "defense",
    [
        Defense("none", transform=[]),
        Defense("sign", transform=Sign()),
        Defense("top-k", transform=KeepTopK(0.05)),
        Defense("withheld", transform=Withhold("5.*")),
        Defense("noise", transform=AddGaussian(1.0)),
        Defense("clip", transform=ClipByGlobalNorm(0.1)),
    ],
    ids=lambda d: str(d.name),
)
def test_other_defences_are_not_mistaken_for_a_constant(defense: Defense) -> None:
    client = defense.client(MODEL, seed=1)
    assert constant_offset(knowledge(MODEL, client=client)) is None


def test_without_a_model_nothing_is_taken_away() -> None:
    known = dataclasses.replace(knowledge(MODEL, client=_client(1.0, _constant())), model=None)
    assert constant_offset(known) is None


def test_noise_from_a_public_seed_does_not_cover_the_signs() -> None:
    counts, constant = skewed(60), _constant()
    noised = [
        dataclasses.replace(o, update={n: t + constant[n] for n, t in o.update.items()})
        for _, _, o in batches(MODEL, counts)
    ]
    attack = LearnedRegression(simulated=100)
    fitted = attack.fit(knowledge(MODEL, client=_client(1.0, constant)))
    assert overlap(fitted.infer(noised), counts) > 0.95


def _clipped_and(constant: Message, *, sparse: bool) -> Callable[[Tensor, Tensor], Message]:
    first = Defense("first", transform=KeepTopK(0.1) if sparse else ClipByGlobalNorm(0.1))
    client = first.client(MODEL, seed=1)
    return lambda inputs, labels: {n: t + constant[n] for n, t in client(inputs, labels).items()}


@pytest.mark.parametrize("sparse", [False, True], ids=["clipped", "sparse"])
def test_a_constant_after_clipping_or_dropping_is_found(sparse: bool) -> None:
    constant = _constant()
    known = knowledge(MODEL, client=_clipped_and(constant, sparse=sparse))
    found = constant_offset(known)
    assert found is not None
    off = sum(float((found[n] - constant[n]).square().sum()) for n in constant)
    total = sum(float(value.square().sum()) for value in constant.values())
    # Coordinates that are always sent never show the bare constant.
    assert off < (0.2 if sparse else 1e-3) * total
    with_constant = _read(known)
    plain = _read(knowledge(MODEL, client=_clipped_and(_zero(), sparse=sparse)))
    assert with_constant > plain - 0.05


def _zero() -> Message:
    return {name: torch.zeros_like(p) for name, p in MODEL.named_parameters()}


def _read(known: Knowledge) -> float:
    client, counts = known.client, skewed(60)
    assert client is not None
    seen = [known.observe(client(inputs, labels)) for inputs, labels, _ in batches(MODEL, counts)]
    return overlap(LearnedRegression(simulated=100).fit(known).infer(seen), counts)


def test_a_tensor_that_never_changes_is_taken_away_whole() -> None:
    constant = _constant()

    def send(inputs: Tensor, labels: Tensor) -> Message:
        raw = gradient(MODEL, inputs, labels)
        return {n: constant[n] + (g if n.startswith("5.") else 0) for n, g in raw.items()}

    found = constant_offset(knowledge(MODEL, client=send))
    assert found is not None
    torch.testing.assert_close(found["0.weight"].float(), constant["0.weight"])
    torch.testing.assert_close(found["5.weight"].float(), constant["5.weight"], atol=1e-3, rtol=0)
