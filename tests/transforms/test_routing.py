from __future__ import annotations

import pytest
import torch
from torch import nn

from gradguard import (
    AddGaussian,
    ClipByGlobalNorm,
    Grads,
    KeepTopK,
    NamedParameters,
    NonFiniteGradientError,
    Only,
    Sign,
    Withhold,
    chain,
    guard,
)

PARAMS = NamedParameters(
    {"body.weight": torch.zeros(3), "body.bias": torch.zeros(2), "head.bias": torch.zeros(2)}
)


def _grads() -> Grads:
    return [torch.tensor([3.0, 4.0, 0.0]), torch.tensor([1.0, -2.0]), torch.tensor([5.0, 0.5])]


def test_only_transforms_the_matching_gradients_as_the_whole_message() -> None:
    only = Only("*.bias", KeepTopK(0.25, scope="global"))
    out, _ = only.update(_grads(), only.init(PARAMS))
    assert [g.tolist() for g in out if g is not None] == [[3, 4, 0], [0, 0], [5, 0]]


def test_the_norm_under_only_is_that_of_the_matching_part() -> None:
    only = Only("body.weight", ClipByGlobalNorm(1.0))
    out, _ = only.update(_grads(), only.init(PARAMS))
    assert out[0] is not None
    torch.testing.assert_close(out[0], torch.tensor([0.6, 0.8, 0.0]))
    assert out[1] is not None
    assert out[1].tolist() == [1.0, -2.0]


def test_others_pass_bitwise_unchanged() -> None:
    only, grads = Only("head.*", AddGaussian(1.0)), _grads()
    out, _ = only.update(grads, only.init(PARAMS))
    assert out[0] is grads[0]
    assert out[1] is grads[1]


def test_nested_routing_intersects() -> None:
    only = Only("body.*", Only("*.bias", Withhold("*")))
    out, _ = only.update(_grads(), only.init(PARAMS))
    assert [g.tolist() for g in out if g is not None] == [[3, 4, 0], [0, 0], [5, 0.5]]


def test_withheld_gradients_are_zero_and_present_if_they_were_present() -> None:
    withhold = Withhold("head.*")
    state = withhold.init(PARAMS)
    out, _ = withhold.update(_grads(), state)
    assert out[2] is not None
    assert out[2].tolist() == [0.0, 0.0]
    gone, _ = withhold.update([*_grads()[:2], None], state)
    assert gone[2] is None


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("transform", [Withhold("head.*"), Only("head.*", Sign())], ids=repr)
def test_nan_is_refused_in_every_layer(transform: Withhold | Only, index: int) -> None:
    grads = _grads()
    grads[index] = torch.tensor([float("nan"), 0.0])
    with pytest.raises(NonFiniteGradientError):
        transform.update(grads, transform.init(PARAMS))


def test_patterns_are_shell_patterns_and_case_counts() -> None:
    assert Withhold("[bh]*.bias").init(PARAMS)["withheld"] == [False, True, True]
    with pytest.raises(ValueError, match="matches no parameter"):
        Withhold("Head.*").init(PARAMS)


def test_unnamed_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="needs parameter names"):
        chain(Sign(), Withhold("*")).init([torch.zeros(2)])


@pytest.mark.parametrize("pattern", ["", None, 3])
def test_an_unusable_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(ValueError, match="pattern must be a shell pattern"):
        Withhold(pattern)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pattern must be a shell pattern"):
        Only(pattern, Sign())  # type: ignore[arg-type]


def test_named_parameters_slice_with_their_names() -> None:
    tail = PARAMS[1:]
    assert tail.names == ("body.bias", "head.bias")
    assert tail[0] is PARAMS[1]


def test_a_tied_weight_is_withheld_under_any_of_its_names() -> None:
    """Matched by its first name only, the head's weight went out under the embedding's name."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5)
            self.head.weight = self.embed.weight

    model = Tied()
    guarded = guard(torch.optim.SGD(model.parameters(), lr=0.1), Withhold("head.*"), model=model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    sent = guarded.release()
    assert isinstance(sent, dict)
    assert list(sent) == ["embed.weight", "head.bias"]
    assert all(not g.any() for g in sent.values())
