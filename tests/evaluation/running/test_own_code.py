from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradguard import Defense, ErrorFeedback, Only, Sign
from gradguard.core import Grads, State
from gradguard.evaluation import Study
from gradguard.evaluation.models import Factory
from gradguard.evaluation.running.bench import prepare
from gradguard.evaluation.running.own_code import content, digest, evaluated, model_code, probe
from tests.evaluation.examples import NONE, STUDY

OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Own:
    factor: float = 1.0

    def init(self, params):
        return {}

    def update(self, grads, state):
        return [None if g is None else %s * g for g in grads], state
"""


@dataclass(frozen=True)
class Scaled:
    factor: float

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if grad is None else _scaled(self.factor, grad) for grad in grads], state


@dataclass(frozen=True)
class Called:
    by: Callable[[Tensor], Tensor] = field(repr=False)

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return [None if grad is None else self.by(grad) for grad in grads], state


def _scaled(factor: float, grad: Tensor) -> Tensor:
    return factor * grad


def own(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class ``Own`` of a module that is written anew."""
    (folder / "own_transform_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_transform_of_mine", raising=False)
    return __import__("own_transform_of_mine").Own


@pytest.mark.parametrize("depth", ["alone", "chained", "routed", "wrapped"])
def test_another_update_is_another_content_at_whatever_depth(
    depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_depth(transform: Any) -> Any:
        return {
            "alone": transform,
            "chained": [transform, Sign()],
            "routed": Only("*", transform),
            "wrapped": ErrorFeedback(transform),
        }[depth]

    found = []
    for factor in ("1.0", "2.0", "1.0"):
        chain = Defense("own", transform=at_depth(own(tmp_path, OWN % factor, monkeypatch)())).chain
        found.append(content(chain))
    assert found[0] != found[1]
    assert found[0] == found[2]


HELPED = (
    OWN.replace("%s", "_helped() + FACTOR")
    + """
FACTOR = 1.0

def _helped():
    return 1.0
"""
)


@pytest.mark.parametrize("old", ["FACTOR = 1.0", "return 1.0"])
def test_another_helper_or_constant_in_its_module_is_another_content(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for text in (HELPED, HELPED.replace(old, old.replace("1.0", "2.0")), HELPED):
        found.append(content(own(tmp_path, text, monkeypatch)()))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_another_field_is_another_content() -> None:
    assert content(Scaled(1.0)) == content(Scaled(1.0)) != content(Scaled(1.5))


def test_what_cannot_be_pickled_is_never_the_same_again() -> None:
    assert content(Called(lambda grad: grad)) != content(Called(lambda grad: 2 * grad))
    same = Called(lambda grad: grad)
    assert content(same) != content(same)


def test_a_function_that_a_transform_calls_shows_in_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, defense = prepare(Study.from_dict(STUDY)), Defense("own", transform=Scaled(2.0))
    before = probe(bench, defense, 0)
    assert probe(bench, defense, 0) == before
    monkeypatch.setattr(f"{__name__}._scaled", lambda factor, grad: 3 * grad)
    assert probe(bench, defense, 0) != before


class Later:
    """A transform that calls its helper from the second round on."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {"round": 0}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        factor = 1.0 if state["round"] < 2 else FACTOR[0]
        sent = [None if grad is None else _scaled(factor, grad) for grad in grads]
        return sent, {"round": state["round"] + 1}


def test_what_a_transform_does_from_a_later_round_on_shows_in_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, defense = prepare(Study.from_dict(STUDY)), Defense("own", transform=Later())
    before = probe(bench, defense, 0)
    assert probe(bench, defense, 0) == before
    monkeypatch.setitem(globals(), "FACTOR", [0.0])
    assert probe(bench, defense, 0) != before


class Bent(nn.Module):
    """Its activation shows neither in its weights nor in what it prints."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flat, self.inner, self.head = nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10)
        self.bend = bend

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.bend(self.inner(self.flat(images))))
        return result


def factory_of(bend: Callable[[Tensor], Tensor]) -> Factory:
    return lambda shape, classes: Bent(bend)


def test_a_model_that_differs_in_its_forward_pass_alone_shows_in_the_probe() -> None:
    benches = [
        prepare(Study.from_dict(STUDY), factory=factory_of(bend))
        for bend in (torch.relu, torch.tanh, torch.relu)
    ]
    first, second, third = (probe(bench, NONE, 0) for bench in benches)
    assert first != second
    assert first == third
    assert probe(benches[0], NONE, 1) != first


def test_a_model_that_cannot_be_probed_is_never_the_same_again() -> None:
    class Picky(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) == 8:
                raise RuntimeError("not eight")
            return super().forward(images.flatten(1))

    bench = prepare(Study.from_dict(STUDY), factory=lambda shape, classes: Picky(64, classes))
    assert probe(bench, NONE, 0) != probe(bench, NONE, 0)


def test_the_source_of_a_users_layers_is_in_the_code_of_a_model() -> None:
    assert model_code(Bent(torch.relu)) == model_code(nn.Sequential(Bent(torch.relu)))
    assert model_code(Bent(torch.relu)) != model_code(nn.Sequential(nn.Linear(2, 2)))


class Evaluated(nn.Module):
    """Its factor acts in evaluation mode alone."""

    def __init__(self, factor: Any, mask: Tensor | None = None) -> None:
        super().__init__()
        self.flat, self.head, self.factor, self.mask = nn.Flatten(), nn.Linear(64, 10), factor, mask

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.flat(images))
        factor = self.factor() if callable(self.factor) else self.factor
        return result if self.training else factor * result


def test_another_attribute_of_a_layer_is_another_code() -> None:
    assert model_code(Evaluated(1.0)) == model_code(Evaluated(1.0)) != model_code(Evaluated(-1.0))
    found = [model_code(Evaluated(1.0, torch.full((3,), value))) for value in (0.0, 0.0, 1.0)]
    assert found[0] == found[1] != found[2]


def test_a_layer_that_cannot_be_pickled_or_has_no_source_is_never_the_same_again() -> None:
    model = Evaluated(lambda: 1.0)
    assert model_code(model) != model_code(model)
    typed: dict[str, Any] = {"__name__": "typed_in"}
    exec("from torch import nn\nclass Typed(nn.Flatten): pass", typed)
    assert model_code(typed["Typed"]()) != model_code(typed["Typed"]())


FACTOR = [1.0]


def _factor() -> float:
    return FACTOR[0]


def test_a_model_that_differs_in_evaluation_mode_alone_shows_in_what_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def model(shape: tuple[int, ...], classes: int) -> nn.Module:
        return Evaluated(_factor)

    bench = prepare(Study.from_dict(STUDY), factory=model)
    before, sent = evaluated(bench, 0), probe(bench, NONE, 0)
    assert evaluated(bench, 0) == before
    assert evaluated(bench, 1) != before
    monkeypatch.setitem(globals(), "FACTOR", [-1.0])
    assert probe(bench, NONE, 0) == sent
    assert evaluated(bench, 0) != before


def test_parts_are_kept_apart_in_a_digest() -> None:
    assert digest(b"a", b"bc") != digest(b"ab", b"c") != digest(b"abc")
