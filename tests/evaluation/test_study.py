from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gradguard import DPSGD, Defense
from gradguard.core import Grads, State
from gradguard.evaluation import Study, UnusableInputError
from gradguard.evaluation.study import default_table
from tests.evaluation.examples import NONE, STUDY, study_with

TOP_K = {"name": "t", "transform": [{"KeepTopK": {"ratio": 0.0}}]}


def test_a_study_survives_a_round_trip() -> None:
    study = Study.from_dict(STUDY)
    assert Study.from_dict(study.to_dict()) == study


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"trails": 3}, "unknown key in the study: 'trails'"),
        ({"attack": {"trails": 3}}, r"\[attack\]: 'trails'; did you mean 'trials'"),
        ({"training": {"step": 3}}, "did you mean 'steps'"),
        ({"training": {"seeds": 0}}, "training.seeds must be a whole number of at least 1"),
        ({"training": {"steps": 1.5}}, "training.steps must be a whole number"),
        ({"training": {"steps": True}}, "training.steps must be a whole number"),
        ({"training": {"learning_rate": 0.0}}, "training.learning_rate must be a number above 0"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate"),
        ({"training": {"momentum": 1.0}}, "training.momentum must be"),
        ({"data": {"test_fraction": 1.0}}, "data.test_fraction must be a number above 0"),
        ({"data": {"name": "mnist"}}, "unknown data.name: 'mnist'"),
        ({"data": {"name": "digits", "path": "x.npz"}}, "both path and name"),
        ({"data": {"path": 3}}, "data.path must be text"),
        ({"data": {"classes": 1}}, "data.classes must be"),
        ({"data": 3}, r"\[data\] must be a table"),
        ({"model": {"name": "resnet"}}, "did you mean 'resnet-gn'"),
        ({"model": {"factory": "a:b"}}, "both name and factory"),
        ({"attack": {"batch_sizes": []}}, "batch_sizes must be a list with at least one"),
        ({"attack": {"batch_sizes": 8}}, "batch_sizes must be a list"),
        ({"attack": {"batch_sizes": [8, 8]}}, "twice"),
        ({"attack": {"batch_sizes": [0]}}, "batch_sizes must be a whole number of at least 1"),
        ({"attack": {"compositions": ["dirichlet:0"]}}, "attack.compositions"),
        ({"attack": {"compositions": ["even"]}}, "attack.compositions"),
        ({"attack": {"stages": ["late"]}}, "unknown attack stage: 'late'"),
        ({"attack": {"trials": 0}}, "attack.trials"),
        ({"attack": {"simulated": 0}}, "attack.simulated"),
        ({"attack": {"rounds": [0]}}, "attack.rounds must be a whole number of at least 1"),
        ({"attack": {"rounds": 5}}, "attack.rounds must be a list"),
        ({"attack": {"rounds": [5, 5]}}, "attack.rounds lists an entry twice"),
        ({"attack": {"participation": 0}}, "attack.participation must be a number above 0"),
        ({"attack": {"participation": 1.5}}, "attack.participation must be .* at most 1"),
        ({"attack": {"participation": True}}, "attack.participation must be"),
        ({"attack": {"participation": float("nan")}}, "attack.participation must be"),
        ({"attack": {"seeds": 3}}, "attack.seeds is 3, but training.seeds makes only 2"),
        ({"attack": {"seeds": 0}}, "attack.seeds must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"seed": "one"}, "seed must be a whole number"),
        ({"defense": []}, "at least one"),
        ({"defense": {"name": "x"}}, r"\[\[defense\]\] tables"),
        ({"defense": [{"transform": []}]}, "defence 1 needs a name"),
        ({"defense": [{"name": " ", "transform": []}]}, "defence 1 needs a name"),
        ({"defense": [{"name": "none", "transform": []}] * 2}, "two defences are called 'none'"),
        ({"defense": [TOP_K]}, "defence 't': .*ratio"),
        (
            {"defense": [{"name": "t", "transform": [{"KeepTopK": {"ratio": 1.5}}]}]},
            "defence 't': .*ratio",
        ),
        (
            {"defense": [{"name": "t", "transform": [{"AddGaussian": {"stddev": -0.1}}]}]},
            "defence 't': .*stddev",
        ),
        ({"defense": [{"name": "t", "transform": [{"KeepTop": {}}]}]}, "did you mean 'KeepTopK'"),
    ],
)
def test_an_unusable_value_is_named_in_one_line(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableInputError, match=said) as caught:
        Study.from_dict(study_with(**sections))
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Own:
    """A transform that no study file can name."""

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return grads, state


def test_a_transform_of_the_users_own_is_described_and_cannot_be_read_back() -> None:
    plain = Study((Defense("own", transform=Own(), dp=DPSGD(1.0, 1.0)),)).to_dict()
    assert plain["defense"][0]["transform"] == "chain(Own())"
    assert plain["defense"][0]["dp"]["noise_multiplier"] == 1.0
    with pytest.raises(UnusableInputError, match="unknown transform"):
        Study.from_dict(plain)


def test_broken_or_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("seed = = 3")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, said in [
        ("broken.toml", "not valid TOML"),
        ("binary.toml", "cannot be read"),
        ("none.toml", "no such file"),
        (".", "cannot be read"),
    ]:
        with pytest.raises(UnusableInputError, match=said):
            Study.from_toml(tmp_path / name)


def test_a_relative_data_path_starts_at_the_study_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[data]\npath = "mine.npz"\n[[defense]]\nname = "none"\ntransform = []\n')
    assert Study.from_toml(path).data.path == str(tmp_path / "mine.npz")


def test_the_default_study_is_valid_and_covers_what_it_promises() -> None:
    study = Study.from_dict(default_table())
    kinds = {type(link).__name__ for d in study.defenses for link in d.chain.links}
    assert kinds >= {"KeepTopK", "ErrorFeedback", "Sign", "Quantize", "AddGaussian", "Withhold"}
    private = [d for d in study.defenses if d.dp is not None]
    assert {d.dp.noise_multiplier for d in private if d.dp} == {0.5, 1.0, 2.0, 4.0}
    after = {type(link).__name__ for d in private for link in d.chain.links}
    assert after == {"KeepTopK", "Quantize"}
    assert study.defenses[0] == NONE
    assert len(study.defenses) == 14


def test_the_default_study_withholds_the_head_of_the_users_model() -> None:
    patterns = [d for d in default_table(head="net.fc")["defense"] if d["name"] == "head withheld"]
    assert patterns[0]["transform"] == [{"Withhold": {"pattern": "net.fc.*"}}]
