"""``gradguard scan`` through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from gradguard import AddGaussian, Defense, LocalTraining, wire
from gradguard.evaluation.models import MODELS, build_model
from tests.evaluation.decisions.messages import AUXILIARY, NONE, victims
from tests.evaluation.examples import run

MODEL = "gradguard.evaluation.models:mlp"
NET = build_model(MODELS["mlp"], input_shape=(1, 8, 8), num_classes=10, seed=7)
NO_DATA = ("--classes", 10, "--input-shape", "1,8,8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = (AUXILIARY.images[:, 0] * 255).round().to(torch.uint8).numpy()
    np.savez(tmp_path / "aux.npz", images=pixels, labels=AUXILIARY.labels.numpy())
    safetensors.torch.save_file(NET.state_dict(), tmp_path / "before.safetensors")
    return tmp_path


def sent(path: Path, number: int = 8, defense: Defense = NONE) -> dict[str, Tensor]:
    message = defense.client(NET, batch_size=number, seed=1)(*victims(number))
    torch.save(message, path / "update.pt")
    return message


def scan(folder: Path, *options: object, size: int = 8) -> int:
    given = ("--batch-size", size, "--weights", folder / "before.safetensors", *options)
    return run("scan", folder / "update.pt", "--model", MODEL, *map(str, given))


@pytest.mark.slow
def test_a_leaking_update_is_told_class_by_class_and_exits_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent(folder)
    assert scan(folder, "--data", folder / "aux.npz", "--trials", 60) == 1
    said = capsys.readouterr().out
    for shown in ("at least one", "none", "BestConstant (blind)", "60 simulated updates"):
        assert shown in said
    assert "Labels leak: " in said
    assert scan(folder, "--data", folder / "aux.npz", "--trials", 60, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    worst = next(a for a in found["answers"] if a["attack"] == found["worst"])
    assert worst["counts"] == np.bincount(victims(8)[1], minlength=10).tolist()
    assert found["notes"] == found["unlike"] == []


@pytest.mark.slow
def test_a_defence_of_a_study_is_played_and_a_quiet_one_exits_with_0(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = Defense("loud noise", transform=AddGaussian(100.0))
    (folder / "study.toml").write_text("[[defense]]\n" + noise.to_toml())
    sent(folder, defense=noise)
    options = ("--data", folder / "aux.npz", "--trials", 200)
    assert scan(folder, *options, "--defense", f"{folder}/study.toml:loud noise") == 0
    assert "Not shown to leak, which is no proof" in " ".join(capsys.readouterr().out.split())
    assert scan(folder, *options, "--defense", f"{folder}/study.toml:loud nose") == 2
    assert "did you mean 'loud noise'?" in capsys.readouterr().err


@pytest.mark.slow
def test_what_chance_may_explain_is_unclear_and_exits_with_3(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = Defense("loud noise", transform=AddGaussian(100.0))
    (folder / "study.toml").write_text("[[defense]]\n" + noise.to_toml())
    sent(folder, defense=noise)
    options = ("--data", folder / "aux.npz", "--defense", f"{folder}/study.toml:loud noise")
    assert scan(folder, *options, "--trials", 20) == 3
    assert "Unclear: " in capsys.readouterr().out
    assert scan(folder, *options, "--trials", 19) == 2
    assert "trials >= 20" in capsys.readouterr().err


def test_without_data_labels_are_read_and_nothing_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent(folder, number=1)
    assert scan(folder, *NO_DATA, size=1) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured" in said
    assert "Nothing here says that the labels are safe" in said
    assert f"IDLG {int(victims(1)[1])} not measured" in said


def test_a_prefix_and_what_is_missing_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = {f"module.{name}": part for name, part in sent(folder, 1).items()}
    del message["module.body.1.weight"]
    torch.save(message, folder / "update.pt")
    assert scan(folder, *NO_DATA, size=1) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "the prefix 'module.' was taken off" in said
    assert "taken as withheld, and so in simulations: body.1.weight" in said


def test_after_minus_before_is_turned_around(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({name: -part for name, part in sent(folder, 1).items()}, folder / "update.pt")
    assert scan(folder, *NO_DATA, "--after-minus-before", "--json", size=1) == 3
    found = json.loads(capsys.readouterr().out)
    by_name = {one["attack"]: one["counts"] for one in found["answers"]}
    assert by_name["IDLG"] == np.bincount(victims(1)[1], minlength=10).tolist()


def test_local_steps_and_the_wire_format_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = LocalTraining(epochs=3, learning_rate=0.1)
    message = NONE.client(NET, training=training)(*victims(1))
    (folder / "update.pt").write_bytes(wire.encode(message))
    options = ("--local-steps", 3, "--learning-rate", 0.1, "--json")
    assert scan(folder, *NO_DATA, *options, size=1) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "the inputs are not known"),
        (("--classes", 10), "the inputs are not known"),
        ((*NO_DATA, "--local-steps", 3), "needs --learning-rate"),
        ((*NO_DATA, "--local-steps", 0, "--learning-rate", 1), "epochs must be"),
        ((*NO_DATA, "--learning-rate", "nan"), "learning_rate must be"),
        ((*NO_DATA, "--max-bytes", 100), "more than 100 bytes"),
        ((*NO_DATA, "--composition", "skew"), "composition must be one of"),
        ((*NO_DATA, "--defense", "study"), "STUDY.toml:NAME"),
        ((*NO_DATA, "--defense", "nowhere.toml:x"), "no such file"),
        (("--classes", 10, "--input-shape", "1,x"), "whole numbers with commas"),
        (("--classes", 10, "--input-shape", "99999,99999,99999"), "whole numbers with commas"),
        (("--classes", 4, "--input-shape", "1,8,8"), "'head.weight' has shape (10, 64)"),
        (("--data", "nowhere.npz"), "no such file"),
        (("--data", "nowhere.npz", "--input-shape", "1,8,8"), "leave out --input-shape"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], says: str
) -> None:
    sent(folder)
    assert scan(folder, *options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.count("\n") == 1


def test_weights_that_lack_a_parameter_or_hold_nan_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent(folder)
    state = dict(NET.state_dict())
    bias = state.pop("head.bias")
    torch.save(state, folder / "before.safetensors")
    assert scan(folder, *NO_DATA) == 2
    assert "'head.bias' is missing" in capsys.readouterr().err
    torch.save(state | {"head.bias": bias * float("nan")}, folder / "before.safetensors")
    assert scan(folder, *NO_DATA) == 2
    assert "NaN or infinity" in capsys.readouterr().err


def test_a_batch_size_of_none_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent(folder)
    assert scan(folder, *NO_DATA, size=0) == 2
    assert "batch size must be from 1" in capsys.readouterr().err
