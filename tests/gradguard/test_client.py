"""The simulated client sends what a deployed client sends."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from gradguard import (
    AddGaussian,
    Client,
    ClipByGlobalNorm,
    Defense,
    ErrorFeedback,
    GradTransform,
    KeepTopK,
    NonFiniteGradientError,
    Quantize,
    Sign,
    Withhold,
    chain,
    guard,
)

_DATA = torch.Generator().manual_seed(5)
INPUTS = torch.randn(8, 1, 6, 6, generator=_DATA)
LABELS = torch.randint(3, (8,), generator=_DATA)

Message = dict[str, Tensor]


def _model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def _same(a: Message, b: Message) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "transform",
    [chain(), Sign(), ErrorFeedback(KeepTopK(0.1)), Withhold("3.*"), ClipByGlobalNorm(0.1)],
    ids=repr,
)
def test_messages_are_what_a_deployed_client_sends_in_its_first_round(
    transform: GradTransform,
) -> None:
    model = _model()
    client = Defense("d", transform=transform).client(model)
    messages = [client(INPUTS, LABELS) for _ in range(2)]
    _, optimizer, _ = Defense("d", transform=transform).attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    cross_entropy(model(INPUTS), LABELS).backward()  # type: ignore[no-untyped-call]
    deployed = optimizer.release()
    assert isinstance(deployed, dict)
    for message in messages:  # the second as the first: no residual is carried over
        assert _same(message, deployed)


def test_messages_are_by_name_in_model_order_and_detached() -> None:
    model = _model()
    message = Client(model, Sign())(INPUTS, LABELS)
    assert list(message) == [name for name, _ in model.named_parameters()]
    assert not any(g.requires_grad for g in message.values())


def test_every_call_has_noise_of_its_own() -> None:
    client = Client(_model(), AddGaussian(1.0))
    assert not _same(client(INPUTS, LABELS), client(INPUTS, LABELS))
    one, other = (Client(_model(), AddGaussian(1.0))(INPUTS, LABELS) for _ in range(2))
    assert not _same(one, other)


def test_a_seed_reproduces_the_sequence_of_messages() -> None:
    runs = []
    for seed in (7, 7, 8):
        client = Client(_model(), chain(AddGaussian(1.0), Quantize(4)), seed=seed)
        runs.append([client(INPUTS, LABELS) for _ in range(3)])
    assert all(map(_same, runs[0], runs[1]))
    assert not any(map(_same, runs[0], runs[2]))
    assert not _same(runs[0][0], runs[0][1])


def test_release_modifies_neither_the_raw_gradients_nor_earlier_messages() -> None:
    client = Client(_model(), Sign())
    raw = client.gradients(INPUTS, LABELS)
    before = copy.deepcopy(raw)
    first = client.release(raw)
    kept = {name: g.clone() for name, g in first.items()}
    client.release([None if g is None else -g for g in raw])
    assert _same(first, kept)
    for a, b in zip(raw, before, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_the_model_given_is_not_changed() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    client = Client(model, Sign())
    client(INPUTS, LABELS)
    assert not model.training
    assert client.model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class _Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(36, 3), nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x.flatten(1))
        return out


def test_a_parameter_without_gradient_is_sent_as_zeros_and_a_frozen_one_is_not_sent() -> None:
    message = Client(_Partly(), AddGaussian(1.0))(INPUTS, LABELS)
    assert list(message) == ["used.weight", "used.bias", "unused.weight", "unused.bias"]
    assert not bool(message["unused.weight"].any())
    assert bool(message["used.weight"].any())


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to send"):
        Client(_model().requires_grad_(False), Sign())


def test_another_loss_can_be_given() -> None:
    client = Defense("d", transform=[]).client(_model(), loss=mse_loss)
    message = client(INPUTS, torch.zeros(8, 3))
    raw = client.gradients(INPUTS, torch.zeros(8, 3))
    assert _same(message, dict(zip(client.names, raw, strict=True)))  # type: ignore[arg-type]


def test_divergence_is_refused_by_name() -> None:
    client = Client(_model(), KeepTopK(0.1))
    with pytest.raises(NonFiniteGradientError, match=r"'0\.weight'"):
        client(INPUTS * float("inf"), LABELS)
    client(INPUTS, LABELS)  # and the client can be used on


def test_a_client_can_be_sent_to_another_process() -> None:
    client = Client(_model(), AddGaussian(1.0), seed=3)
    other = pickle.loads(pickle.dumps(client))
    assert _same(client(INPUTS, LABELS), other(INPUTS, LABELS))


def test_a_client_works_where_gradients_are_disabled() -> None:
    with torch.no_grad():
        assert bool(Client(_model(), Sign())(INPUTS, LABELS)["3.bias"].any())


def test_attach_returns_the_loader_and_model_given() -> None:
    model, loader = _model(), object()
    attached = Defense("d", transform=Sign()).attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), loader
    )
    assert attached.model is model
    assert attached.loader is loader
    assert attached.optimizer.transform == chain(Sign())
    assert isinstance(attached.optimizer, type(guard(attached.optimizer.inner, Sign())))


def test_a_cohort_is_deployed_only_where_the_framework_is_said_to_aggregate() -> None:
    model = _model()
    defense = Defense("c", transform=Sign(), cohort=16)
    with pytest.raises(ValueError, match=r"sum of the messages of 16 clients.*aggregated=True"):
        defense.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    attached = defense.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), aggregated=True)
    assert attached.optimizer.transform == chain(Sign())


def test_a_cohort_is_kept_in_files_and_must_be_a_whole_number() -> None:
    defense = Defense("c", transform=Sign(), cohort=16)
    assert Defense.from_toml(defense.to_toml()) == defense == Defense.from_json(defense.to_json())
    assert "cohort" not in Defense("c", transform=Sign()).to_dict()
    for cohort in (0, 1.5, True, "many", float("nan")):
        with pytest.raises(ValueError, match="defence 'c': cohort must be a whole number"):
            Defense("c", transform=Sign(), cohort=cohort)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_release_takes_well_under_two_milliseconds() -> None:
    """10,000 parameters; typically 0.1 to 0.7 ms. The bound leaves room for a busy machine."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 64),
                          nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
    client = Client(model, chain(ClipByGlobalNorm(1.0), AddGaussian(0.1)))
    raw = client.gradients(INPUTS, LABELS)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        client.release(raw)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3
