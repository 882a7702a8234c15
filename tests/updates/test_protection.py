"""The change of a model as one message: what is transformed, what is withheld, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradguard import (
    AddGaussian,
    ClipByGlobalNorm,
    ErrorFeedback,
    GradTransform,
    Identity,
    KeepTopK,
    Sign,
    UpdateGuard,
    Withhold,
    apply_update,
    chain,
    protect,
)
from gradguard.core import Grads, State
from gradguard.randomness import reseeded
from gradguard.strategies import transforms
from gradguard.updates.errors import NonFiniteUpdateError, UpdateError
from gradguard.updates.layout import layout_of_entries, layout_of_model


def normed() -> nn.Module:
    """With BatchNorm: parameters, statistics and a counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def trained(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the model's entries before and after a step."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    inputs, labels = torch.randn(8, 4), torch.randint(3, (8,))
    nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return before, {name: t.clone() for name, t in model.state_dict().items()}


def flat(update: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return torch.cat([update[name].flatten() for name in names])


def test_the_update_leads_from_the_model_before_to_the_model_after() -> None:
    before, after = trained(normed())
    update, _ = protect(before, after, Identity(), buffers="send")
    assert list(update) == list(after)
    for name, tensor in apply_update(before, update).items():
        assert tensor.dtype == after[name].dtype
        assert torch.allclose(tensor, after[name], atol=1e-6), name


def test_a_clipping_norm_counts_parameters_and_nothing_else() -> None:
    model = normed()
    before, after = trained(model)
    after["1.running_mean"] += 1e6
    after["1.num_batches_tracked"] += 1000
    layout = layout_of_model(model)
    raw, _ = protect(before, after, Identity(), layout=layout, buffers="withhold")
    update, _ = protect(before, after, ClipByGlobalNorm(0.1), layout=layout, buffers="withhold")
    assert float(flat(raw, layout.parameters).norm()) > 0.2
    assert float(flat(update, layout.parameters).norm()) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("transform", [AddGaussian(1.0), Sign(), KeepTopK(0.5)])
def test_withheld_buffers_are_exactly_zero_under_every_transform(transform: GradTransform) -> None:
    before, after = trained(normed())
    update, _ = protect(before, after, transform, buffers="withhold")
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert int(update[name].count_nonzero()) == 0
        assert update[name].dtype == after[name].dtype
    assert torch.equal(apply_update(before, update)["1.running_var"], before["1.running_var"])


def test_sent_buffers_are_bitwise_their_change_under_every_transform() -> None:
    before, after = trained(normed())
    update, _ = protect(before, after, AddGaussian(1.0), buffers="send")
    for name in ("1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(update[name], after[name] - before[name])


def test_changed_statistics_without_a_choice_are_refused() -> None:
    before, after = trained(normed())
    with pytest.raises(UpdateError, match="buffers='withhold'"):
        protect(before, after, Sign())
    after["1.running_mean"], after["1.running_var"] = (
        before["1.running_mean"],
        before["1.running_var"],
    )
    update, _ = protect(before, after, Sign())  # in evaluation mode they do not change
    assert int(update["1.num_batches_tracked"]) == 0
    with pytest.raises(ValueError, match="'withhold' or 'send', got 'keep'"):
        protect(before, after, Sign(), buffers="keep")  # type: ignore[arg-type]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 5), nn.Linear(5, 5)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("known", [True, False])
def test_tied_weights_count_once_and_stay_tied(known: bool) -> None:
    model = Tied()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        model.encoder.weight += 1.0
    layout = layout_of_model(model) if known else None
    after = model.state_dict()
    update, _ = protect(before, after, ClipByGlobalNorm(1.0), layout=layout)
    assert float(update["encoder.weight"].norm()) == pytest.approx(1.0, rel=1e-5)
    noised, _ = protect(before, after, AddGaussian(1.0), layout=layout)
    assert torch.equal(noised["encoder.weight"], noised["decoder.weight"])
    noised["encoder.weight"].zero_()
    assert int(noised["decoder.weight"].count_nonzero()) > 0  # copies


def test_tied_weights_are_withheld_under_either_name() -> None:
    model = Tied()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        model.encoder.weight += 1.0
    update, _ = protect(before, model.state_dict(), Withhold("decoder.weight"))
    assert int(update["encoder.weight"].count_nonzero()) == 0


def test_tied_weights_that_differ_are_refused() -> None:
    model = Tied()
    layout, before = layout_of_model(model), copy.deepcopy(model.state_dict())
    after = {name: t.clone() for name, t in model.state_dict().items()}
    after["decoder.weight"] += 1
    with pytest.raises(UpdateError, match="one tensor of the model"):
        protect(before, after, Sign(), layout=layout)


def test_a_parameter_that_a_buffer_shares_is_transformed_all_the_same() -> None:
    model = nn.Module()
    model.fc = nn.Linear(3, 2)
    model.register_buffer("view", model.fc.weight.data)  # listed before its children's parameters
    layout = layout_of_model(model)
    assert layout.parameters == ("fc.weight", "fc.bias")
    assert layout.ties == (("view", "fc.weight"),)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    after = {name: t + 1.5 for name, t in before.items()}
    for buffers in ("withhold", "send"):
        update, _ = protect(before, after, Sign(), layout=layout, buffers=buffers)
        assert torch.equal(update["view"], update["fc.weight"])
        noised, _ = protect(before, after, AddGaussian(100.0), layout=layout, buffers=buffers)
        assert float((noised["fc.weight"] - 1.5).abs().max()) > 1


def test_a_tensor_that_is_trained_and_frozen_at_once_is_refused() -> None:
    model = nn.Module()
    model.one, model.other = nn.Linear(3, 2), nn.Linear(3, 2)
    model.other.weight = nn.Parameter(model.one.weight.data, requires_grad=False)
    with pytest.raises(UpdateError, match="trained and, under another of its names"):
        layout_of_model(model)


def test_a_0_d_parameter_is_clipped_and_noised_like_others() -> None:
    before, after = {"logit_scale": torch.tensor(1.0)}, {"logit_scale": torch.tensor(51.0)}
    clipped, _ = protect(before, after, ClipByGlobalNorm(1.0))
    assert clipped["logit_scale"].shape == ()
    assert float(clipped["logit_scale"]) == pytest.approx(1.0, rel=1e-5)
    noised, _ = protect(before, after, chain(ClipByGlobalNorm(1.0), AddGaussian(5.0)))
    again, _ = protect(before, after, chain(ClipByGlobalNorm(1.0), AddGaussian(5.0)))
    assert not torch.equal(noised["logit_scale"], again["logit_scale"])


def test_a_zero_update_and_empty_entries_are_messages() -> None:
    before = {"w": torch.ones(3), "none": torch.zeros(0, 4), "n": torch.zeros(0, dtype=torch.long)}
    for transform in (ClipByGlobalNorm(1.0), Sign(), KeepTopK(0.5), AddGaussian(0.1)):
        update, _ = protect(before, before, transform)
        assert update["none"].shape == (0, 4)
        assert bool(torch.isfinite(update["w"]).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("which", ["before", "after"])
def test_nan_and_infinity_are_refused_by_name_before_noise_is_drawn(
    which: str, name: str, bad: float
) -> None:
    before, after = trained(normed())
    (before if which == "before" else after)[name].view(-1)[0] = bad
    transform = chain(ErrorFeedback(KeepTopK(0.5)), AddGaussian(0.1))
    _, state = protect(*trained(normed()), transform, buffers="withhold")
    kept = copy.deepcopy(state)
    with pytest.raises(NonFiniteUpdateError, match=f"'{name}' contains NaN or infinity {which}"):
        protect(before, after, transform, state, buffers="withhold")
    assert str(kept) == str(state)


def test_a_difference_that_overflows_is_refused_by_name() -> None:
    before, after = {"w": torch.tensor([-3e38])}, {"w": torch.tensor([3e38])}
    for transform in (Sign(), Identity()):
        with pytest.raises(NonFiniteUpdateError, match="'w' contains"):
            protect(before, after, transform)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_an_update_in_float32_and_a_model_in_its_own(
    dtype: torch.dtype,
) -> None:
    before = {"w": torch.tensor([1.0, 2.0, 3.0]).to(dtype)}
    after = {"w": torch.tensor([1.0078125, 2.0, -3.0]).to(dtype)}
    update, _ = protect(before, after, Identity())
    assert update["w"].dtype == torch.float32
    assert torch.equal(apply_update(before, update)["w"], after["w"])
    wide = {"w": torch.zeros(2, dtype=torch.float64)}
    assert protect(wide, wide, Sign())[0]["w"].dtype == torch.float64


def test_frozen_parameters_are_not_noised_and_must_not_change() -> None:
    model = normed()
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    before, after = trained(model)
    layout = layout_of_model(model)
    update, _ = protect(before, after, AddGaussian(1.0), layout=layout, buffers="withhold")
    assert int(update["0.weight"].count_nonzero()) == 0
    after["0.weight"] += 1
    with pytest.raises(
        UpdateError, match=r"'0.weight' does not require a gradient and has changed"
    ):
        protect(before, after, AddGaussian(1.0), layout=layout, buffers="withhold")


def test_booleans_are_withheld_or_sent_as_they_are() -> None:
    before, after = (
        {"w": torch.ones(2), "mask": torch.tensor([True, False])},
        {
            "w": torch.zeros(2),
            "mask": torch.tensor([True, True]),
        },
    )
    assert torch.equal(
        apply_update(before, protect(before, after, Identity())[0])["mask"], before["mask"]
    )
    sent, _ = protect(before, after, Identity(), buffers="send")
    assert torch.equal(apply_update(before, sent)["mask"], after["mask"])


def test_models_that_do_not_fit_are_refused() -> None:
    before, after = trained(normed())
    wrong: dict[str, dict[str, Tensor]] = {
        "missing from": {k: t for k, t in after.items() if k != "3.bias"},
        "only in": {f"module.{k}": t for k, t in after.items()} | after,
        r"of shape \(2,\) after": after | {"3.bias": torch.zeros(2)},
        "torch.float64": after | {"3.bias": torch.zeros(3, dtype=torch.float64)},
    }
    for words, other in wrong.items():
        with pytest.raises(UpdateError, match=words):
            protect(before, other, Sign(), buffers="withhold")
    with pytest.raises(UpdateError, match="has shape"):
        apply_update(before, after | {"3.bias": torch.zeros(2)})
    with pytest.raises(UpdateError, match="the layout and the models disagree"):
        protect(before, after, Sign(), layout=layout_of_entries({"w": torch.ones(1)}))


def test_a_state_of_another_transform_is_refused() -> None:
    before, after = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    _, state = protect(before, after, ErrorFeedback(KeepTopK(0.5)))
    with pytest.raises(ValueError, match="belongs to another defence"):
        protect(before, after, AddGaussian(1.0), state)


def test_error_feedback_is_carried_by_the_state_and_by_nothing_else() -> None:
    before, after = {"w": torch.zeros(4)}, {"w": torch.tensor([4.0, 3.0, 2.0, 1.0])}
    transform, state, total = ErrorFeedback(KeepTopK(0.25)), None, torch.zeros(4)
    for _ in range(12):
        update, state = protect(before, after, transform, state)
        total += update["w"]
    assert state is not None
    # Everything that was not sent is owed: twelve rounds of ten.
    owed = sum(float(t.sum()) for t in state["memory"])
    assert float(total.sum()) + owed == pytest.approx(120.0)
    assert float(total.min()) > 0
    first, _ = protect(before, after, transform)
    assert torch.equal(first["w"], torch.tensor([4.0, 0.0, 0.0, 0.0]))


class Keeps:
    """Returns and remembers the very tensors that it is given."""

    def init(self, params: object) -> State:
        return {"last": []}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return grads, {"last": []}


def test_no_result_shares_memory_with_the_models() -> None:
    before, after = (
        {"w": torch.zeros(3), "n": torch.tensor(1)},
        {"w": torch.ones(3), "n": torch.tensor(2)},
    )
    update, _ = protect(before, after, Keeps(), buffers="send")
    for tensor in update.values():
        tensor.zero_()
    assert torch.equal(after["w"], torch.ones(3))
    assert int(after["n"]) == 2


@given(transform=transforms(), seed=st.integers(0, 10))
def test_the_message_of_any_transform_is_that_of_the_plain_list_of_changes(
    transform: GradTransform, seed: int
) -> None:
    before = {
        "body.weight": torch.zeros(3, 4),
        "scale": torch.tensor(0.0),
        "head.bias": torch.zeros(5),
    }
    rng = torch.Generator().manual_seed(seed)
    after = {name: torch.randn(t.shape, generator=rng) for name, t in before.items()}
    params = layout_of_entries(after).named_parameters(before)
    state = reseeded(transform.init(params), seed)
    expected, _ = transform.update(list(after.values()), copy.deepcopy(state))
    update, _ = protect(before, after, transform, state)
    for tensor, name in zip(expected, after, strict=True):
        assert tensor is not None
        assert torch.equal(update[name], tensor)


def test_a_guard_without_a_model_goes_by_the_entries_names_and_dtypes() -> None:
    model = normed()
    before, after = trained(model)
    transform = chain(ClipByGlobalNorm(0.1), KeepTopK(0.2))
    by_model = UpdateGuard(transform, model, buffers="withhold").protect(before, after)
    by_entries = UpdateGuard(transform, before, buffers="withhold").protect(before, after)
    assert by_model.keys() == by_entries.keys()
    assert all(torch.equal(by_model[name], by_entries[name]) for name in by_model)
