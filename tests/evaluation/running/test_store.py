"""Files of finished units: whole or not there, intact or not believed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard.evaluation import Study, UnusableInputError, evaluate
from gradguard.evaluation.running.bench import prepare
from gradguard.evaluation.running.keys import Keys
from gradguard.evaluation.running.own_code import digest
from gradguard.evaluation.running.store import LENT, LOG, Store
from gradguard.evaluation.running.units import Trained
from tests.evaluation.examples import study_with

KEY, OTHER = digest(b"a"), digest(b"b")
SCORES = {"LLG": [[0.1, 1 / 3, 5e-324]]}
RESULT = {"calibration": SCORES, "scored": SCORES, "skipped": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cells")


def test_a_result_comes_back_to_the_last_digit(store: Store) -> None:
    assert store.read(KEY) is None
    store.write(KEY, RESULT)
    assert store.read(KEY) == RESULT
    assert store.has(KEY)
    assert not store.has(OTHER)


@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_file_that_was_cut_short_or_changed_is_not_taken(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    store.write(KEY, RESULT)
    whole = store.path(KEY).read_bytes()
    changed = bytearray(whole[: len(whole) - 1 - cut % len(whole)])
    store.path(KEY).write_bytes(bytes(changed))
    assert store.read(KEY) is None
    changed = bytearray(whole)
    changed[flip % len(whole)] ^= 1
    store.path(KEY).write_bytes(bytes(changed))
    assert store.read(KEY) in (None, RESULT)  # a changed digit of no number may say the same


def test_a_file_of_another_unit_is_not_taken(store: Store) -> None:
    store.write(KEY, RESULT)
    store.path(OTHER).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(store.path(KEY), store.path(OTHER))
    assert store.read(OTHER) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_result_is_not_taken(store: Store, content: bytes) -> None:
    store.path(KEY).parent.mkdir(parents=True)
    store.path(KEY).write_bytes(content)
    assert store.read(KEY) is None


@pytest.mark.parametrize(
    "result",
    [
        *({}, [], "x", None, {"tensors": "x"}, {"accuracy": 2.0, "diverged": False}),
        *({"accuracy": "1", "diverged": False}, {"step_overhead": None, "bytes_per_update": 1.0}),
        *({"scored": SCORES, "skipped": {}}, RESULT | {"scored": {}}),
        *(RESULT | {"scored": {"LLG": scores}} for scores in ([0.1], [["a"]], [[0.1], []], [[2]])),
        RESULT | {"scored": {"LLG": None}},
    ],
    ids=str,
)
def test_what_is_no_units_result_is_not_taken_whatever_its_checksum(
    store: Store, result: Any
) -> None:
    store.write(KEY, result)
    assert not store.has(KEY)


def test_misfits_of_a_finished_study_are_computed_anew(store: Store) -> None:
    study = Study.from_dict(study_with(attack={"stages": ["trained"]}))
    before = evaluate(study, store=store.folder)
    for path in store.folder.glob("*/*.json"):
        held = store.read(path.stem)
        store.write(path.stem, {name: held[name] for name in held if name != "accuracy"} | {"x": 1})
    for path in list(store.folder.glob("*/*.json"))[::2]:
        store.write(path.stem, {"tensors": "x"})
    after = evaluate(study, store=store.folder, resume=True)
    assert not after.failures
    assert [row.attacks for row in after.rows] == [row.attacks for row in before.rows]
    assert [row.accuracy_seeds for row in after.rows] == [r.accuracy_seeds for r in before.rows]


def test_the_result_of_another_kind_of_unit_fails_its_rows_and_names_its_place(
    store: Store,
) -> None:
    study = Study.from_dict(study_with())
    evaluate(study, store=store.folder)
    unit = Trained("top-k", 0)
    path = store.path(Keys(prepare(study)).of(unit))
    store.write(path.stem, {"step_overhead": 1.0, "bytes_per_update": None})
    report = evaluate(study, store=store.folder, resume=True)
    assert [row.defense for row in report.rows] == ["none"]
    [failure] = report.failures
    assert failure.why == f"{path}: no result of {unit}; remove it, and use --resume"


def test_tensors_come_back_bitwise_and_only_intact(store: Store) -> None:
    tied = torch.randn(3, 4)
    tensors = {"a": tied, "b": tied, "n": torch.tensor(7)}  # one memory under two names
    store.write_tensors(KEY, tensors, accuracy=0.5)
    held = store.read_tensors(KEY)
    assert held is not None
    assert all(torch.equal(held[name], tensors[name]) for name in tensors)
    assert store.read(KEY)["accuracy"] == 0.5
    path = store.path(KEY, ".safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert store.read_tensors(KEY) is None
    path.unlink()
    assert store.read_tensors(KEY) is None


def test_tensors_of_any_layout_come_back_bitwise(store: Store) -> None:
    image = torch.randn(2, 3, 4, 5)
    tensors = {
        "channels last": image.to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).T,
        "expanded": torch.randn(3, 1).expand(3, 4),
        "parameter": torch.nn.Parameter(image),
    }
    store.write_tensors(KEY, tensors, accuracy=0.5)
    held = store.read_tensors(KEY)
    assert held is not None
    assert all(torch.equal(held[name], tensors[name]) for name in tensors)


def test_what_is_no_tensor_is_refused_by_name(store: Store) -> None:
    tensors: dict[str, Any] = {"weight": torch.zeros(2), "0._extra_state": {"scale": 2}}
    with pytest.raises(UnusableInputError, match=r"tensors, and 0\._extra_state in the model"):
        store.write_tensors(KEY, tensors)
    assert store.read_tensors(KEY) is None


def test_nan_is_no_result(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write(KEY, {"accuracy": float("nan")})
    assert not store.has(KEY)


def test_what_a_killed_process_left_half_written_is_removed(store: Store) -> None:
    store.write(KEY, RESULT)
    lent = LENT.format(123)
    halves = [
        *(store.path(KEY).parent / f".{KEY}.{kind}.abc_123" for kind in ("json", "safetensors")),
        *(store.folder / lent, store.folder / f".{lent}.abc_123"),
        store.path(KEY, ".begun"),
    ]
    for half in halves:
        half.write_bytes(b"{")
    with store.opened():
        assert not any(half.exists() for half in halves)
        assert store.has(KEY)


def test_the_files_of_the_owner_of_a_folder_stay(store: Store) -> None:
    names = ["images-train.safetensors", "images-2024.safetensors", ".coverage.host.12"]
    names += ["sub/.a.b.c", "sub/diary.begun", "ab/diary.begun", f"ab/{OTHER}.begun", ".a.b.c"]
    for name in names:
        (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / name).write_text("mine")
    with store.opened():
        pass
    assert all((store.folder / name).read_text() == "mine" for name in names)


def test_a_second_run_in_the_same_folder_is_refused(store: Store) -> None:
    with store.opened():
        program = (
            "import sys; from pathlib import Path\n"
            "from gradguard.evaluation.running.store import Store\n"
            "with Store(Path(sys.argv[1])).opened(): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(store.folder)], capture_output=True, text=True
        )
        assert "another gradguard is at work there" in done.stderr
    with store.opened():
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UnusableInputError, match="cannot be written"),
        Store(tmp_path / "file" / "cells").opened(),
    ):
        pass


def _busy(folder: Path, times: multiprocessing.queues.Queue) -> None:  # type: ignore[type-arg]
    with Store(folder).alone(KEY):
        start = time.monotonic()
        time.sleep(0.3)
        times.put((start, time.monotonic()))


def test_one_process_at_a_time_is_alone(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    times = context.Queue()
    processes = [context.Process(target=_busy, args=(store.folder, times)) for _ in range(2)]
    for process in processes:
        process.start()
    (_, first), (second, _) = sorted(times.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert first <= second


def test_a_lock_ends_with_the_process_that_held_it(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    times = context.Queue()
    process = context.Process(target=_busy, args=(store.folder, times))
    process.start()
    while not store.path(KEY, ".lock").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.alone(KEY):
        pass


def test_the_log_has_a_line_for_every_entry(store: Store) -> None:
    with store.opened():
        for number in range(3):
            store.log(unit=f"number {number}", seconds=0.1)
    lines = [json.loads(line) for line in (store.folder / LOG).read_text().splitlines()]
    assert [line["unit"] for line in lines] == ["number 0", "number 1", "number 2"]
    assert all(line["process"] == os.getpid() for line in lines)
