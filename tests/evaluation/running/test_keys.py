"""Content hashes: what must change them, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradguard import Defense, Grads, Identity, State
from gradguard.evaluation import Data, Study, UnusableInputError, evaluate, load_digits
from gradguard.evaluation.models import mlp
from gradguard.evaluation.progress import Silent
from gradguard.evaluation.running import keys as module
from gradguard.evaluation.running.bench import Cell, prepare
from gradguard.evaluation.running.cell import attack_model
from gradguard.evaluation.running.keys import Keys
from gradguard.evaluation.running.perform import plain
from gradguard.evaluation.running.units import Attacked, Trained, Undefended, Unit, Weighed
from tests.evaluation.examples import STUDY, study_with

CELL = Cell("init", "skewed", 4)
UNITS: tuple[Unit, ...] = (
    Attacked("none", CELL, 0),
    Trained("none", 0),
    Weighed("none"),
    Undefended(0),
)


def keys_of(table: dict[str, Any] = STUDY, **options: Any) -> list[str]:
    made = Keys(prepare(Study.from_dict(table), **options))
    return [made.of(unit) for unit in UNITS]


def test_hashes_are_the_same_every_time_and_different_for_every_unit() -> None:
    assert keys_of() == keys_of()
    assert len(set(keys_of())) == len(UNITS)
    made = Keys(prepare(Study.from_dict(study_with(attack={"batch_sizes": [4, 8]}))))
    units: list[Unit] = [
        *(
            Attacked("none", Cell("init", "skewed", 4, rounds), r)
            for rounds in (1, 2)
            for r in (0, 1)
        ),
        *(Attacked(name, CELL, 0) for name in ("top-k",)),
        *(
            Attacked("none", cell, 0)
            for cell in (Cell("init", "skewed", 8), Cell("init", "iid", 4))
        ),
        *(Trained("none", 1), Trained("top-k", 0), Weighed("top-k"), Undefended(1)),
    ]
    assert len({made.of(unit) for unit in units}) == len(units)


def test_other_defences_and_cells_change_no_hash() -> None:
    more = [{"name": "new", "transform": ["Sign"]}, *reversed(STUDY["defense"])]
    assert keys_of(study_with(defense=more)) == keys_of()
    wider = {"batch_sizes": [8, 4], "compositions": ["iid", "skewed"], "rounds": [1, 5]}
    assert keys_of(study_with(attack=wider)) == keys_of()


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "model": {"model": {"name": "lenet"}},
    "label smoothing": {"training": {"label_smoothing": 0.1}},
    "split": {"data": {"test_fraction": 0.3}},
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_what_all_results_depend_on_changes_every_hash(change: str) -> None:
    changed = keys_of(study_with(**CHANGES[change]))
    assert not set(changed) & set(keys_of())


def test_how_models_train_changes_all_but_an_attack_on_a_fresh_one() -> None:
    for change in ({"steps": 5}, {"learning_rate": 0.1}, {"momentum": 0.0}, {"batch_size": 8}):
        attacked, *others = keys_of(study_with(training=change))
        assert attacked == keys_of()[0]
        assert not set(others) & set(keys_of())
        made = Keys(prepare(Study.from_dict(study_with(training=change))))
        trained = Attacked("none", Cell("trained", "skewed", 4), 0)
        assert made.of(trained) != Keys(prepare(Study.from_dict(STUDY))).of(trained)


def test_more_models_change_no_hash_where_each_meets_as_many_batches() -> None:
    more = {"training": {"seeds": 3}, "attack": {"trials": 9, "calibration": 9}}
    assert keys_of(study_with(**more)) == keys_of()


def test_an_attack_on_a_fresh_model_depends_on_no_more_than_its_hash() -> None:
    other = {"steps": 9, "batch_size": 32, "learning_rate": 0.5, "momentum": 0.0, "seeds": 3}
    found = []
    for changes in ({}, {"training": other, "attack": {"trials": 9, "calibration": 9}}):
        bench = prepare(Study.from_dict(study_with(**changes)))
        scores = attack_model(bench, CELL, bench.study.defenses[0], 1, Silent())
        found.append(plain(scores))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "change",
    [{"trials": 8}, {"calibration": 8}, {"simulated": 50, "attackers": "all"},
     {"participation": 0.5}, {"attackers": ["LLG", "BiasCount"]}, {"auxiliary_shift": "blur"}],
    ids=str,
)  # fmt: skip
def test_settings_of_the_attack_change_the_attack_alone(change: dict[str, Any]) -> None:
    attacked, *others = keys_of(study_with(attack=change))
    assert attacked != keys_of()[0]
    assert others == keys_of()[1:]


def test_one_image_one_label_and_one_weight_change_every_hash() -> None:
    data = load_digits()
    images, labels = data.images.clone(), data.labels.clone()
    images[17, 0, 3, 3] += 1e-6
    assert not set(keys_of(data=replace(data, images=images))) & set(keys_of())
    labels[17] = (labels[17] + 1) % 10
    assert not set(keys_of(data=replace(data, labels=labels))) & set(keys_of())
    assert keys_of(data=Data("another name", data.images, data.labels, 10)) == keys_of()

    def nudged(shape: tuple[int, ...], classes: int) -> nn.Module:
        model = mlp(shape, classes)
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-6
        return model

    assert not set(keys_of(factory=nudged)) & set(keys_of(factory=mlp))


def test_sources_and_versions_change_every_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of()
    changes: list[tuple[str, Callable[[], Any]]] = [
        ("sources_digest", lambda: "other"),
        ("versions", lambda: {"torch": "0"}),
    ]
    for name, other in changes:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other)
            assert not set(keys_of()) & set(before)


def test_the_sources_of_all_three_packages_count() -> None:
    import gradguard

    root = Path(gradguard.__file__).parent
    found = {str(path.relative_to(root)) for path in module._python_files(root)}
    assert {"core.py", "attacks/llg.py", "evaluation/running/keys.py"} <= found
    assert not any("views" in name for name in found)  # a new look makes no new results


class Own:
    """A transform of a user's own, which no file can name."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def init(self, params: object) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return grads, state

    def __repr__(self) -> str:
        return "Own()"


def test_a_transform_of_ones_own_counts_with_its_settings() -> None:
    study = Study.from_dict(STUDY)

    def key(transform: Any) -> str:
        defenses = (Defense("none", transform=transform), *study.defenses[1:])
        return Keys(prepare(replace(study, defenses=defenses))).of(Trained("none", 0))

    assert key(Own(1.0)) == key(Own(1.0)) != key(Own(2.0))
    assert key(Identity()) not in (key(Own(1.0)), key(Own(2.0)))


class Evaluated(nn.Linear):
    """A head with an attribute that acts in evaluation mode alone, and prints nowhere."""

    def __init__(self, inputs: int, classes: int, factor: float) -> None:
        super().__init__(inputs, classes)
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result = super().forward(images.flatten(1))
        return result if self.training else self.factor * result


def test_an_attribute_that_acts_in_evaluation_mode_alone_changes_every_hash() -> None:
    def of(factor: float) -> list[str]:
        return keys_of(factory=lambda shape, classes: Evaluated(64, classes, factor))

    assert of(1.0) == of(1.0)
    assert not set(of(1.0)) & set(of(-1.0))


class Extra(nn.Linear):
    """A head with a state that is no tensor."""

    def __init__(self, inputs: int, classes: int, scale: int) -> None:
        super().__init__(inputs, classes)
        self.scales = (scale,)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1))

    def get_extra_state(self) -> object:
        return {"scale": self.scales}

    def set_extra_state(self, state: Any) -> None:
        self.scales = state["scale"]


def test_a_state_that_is_no_tensor_counts() -> None:
    def of(scale: int) -> str:
        return module.model_digest(Extra(64, 10, scale))

    torch.manual_seed(0)
    first = of(1)
    torch.manual_seed(0)
    assert of(1) == first
    torch.manual_seed(0)
    assert of(2) != first


def test_a_model_with_such_a_state_is_evaluated_fresh_and_refused_where_it_is_trained_first() -> (
    None
):
    def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
        return Extra(64, classes, 1)

    assert len(evaluate(Study.from_dict(STUDY), factory=factory).rows) == 2
    trained = Study.from_dict(study_with(attack={"stages": ["trained"]}))
    with pytest.raises(UnusableInputError, match="_extra_state in the model's state is none"):
        evaluate(trained, factory=factory)


def test_a_model_in_channels_last_can_be_attacked_once_it_is_trained() -> None:
    def factory(shape: tuple[int, ...], classes: int) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return model

    trained = Study.from_dict(study_with(attack={"stages": ["trained"]}))
    report = evaluate(trained, factory=factory)
    assert len(report.rows) == 2
    assert not report.failures
