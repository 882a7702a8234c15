from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from gradguard.evaluation import Data, UnusableInputError, from_dataset, load_digits, load_npz
from gradguard.evaluation.data import MIN_PER_CLASS
from gradguard.evaluation.split import check_room, split
from tests.evaluation.examples import write_npz


def test_npz_images_become_channels_first_in_unit_range(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 5, 7, 3), dtype=np.uint8)
    data = load_npz(write_npz(tmp_path / "rgb.npz", images=images))
    assert data.input_shape == (3, 5, 7)
    assert data.images[4, 2, 1, 6] == pytest.approx(images[4, 1, 6, 2] / 255)


def test_a_report_does_not_learn_the_path_of_the_data(tmp_path: Path) -> None:
    assert load_npz(write_npz(tmp_path / "mine.npz")).name == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "add 'labels'"),
        ({"images": None}, "add 'images'"),
        ({"labels": np.arange(200) % 4 - 1}, "label -1 is outside"),
        ({"labels": np.arange(200) % 4 * 2}, "without gaps"),
        ({"labels": np.zeros(200, dtype=np.int64)}, "at least 2 classes"),
        ({"labels": np.arange(199) % 4}, "200 images but 199 labels"),
        ({"labels": np.arange(200) % 4 / 2}, "labels as integers"),
        ({"labels": np.ones((200, 4), dtype=np.int64)}, "labels as integers"),
        ({"images": np.zeros((200, 8, 8))}, "images as uint8"),
        ({"images": np.zeros((200, 64), dtype=np.uint8)}, "images as uint8"),
        (
            {"images": np.zeros((0, 8, 8), dtype=np.uint8), "labels": np.zeros(0, dtype=int)},
            "there are no images",
        ),
        ({"labels": np.array([{"a": 1}] * 200, dtype=object)}, "not a readable .npz"),
    ],
)
def test_unusable_npz_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(UnusableInputError, match=said) as caught:
        load_npz(path)
    assert "\n" not in str(caught.value)


def test_label_beyond_the_stated_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match=r"label 3 is outside 0\.\.2"):
        load_npz(write_npz(tmp_path / "d.npz"), classes=3)


def test_missing_or_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match="no such file"):
        load_npz(tmp_path / "none.npz")
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("zip.npz", b"PK\3\4junk")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnusableInputError, match="not a readable"):
            load_npz(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UnusableInputError, match="not a readable"):
        load_npz(tmp_path / "array.npy")


def test_images_with_nan_are_refused() -> None:
    images = torch.full((40, 1, 2, 2), float("nan"))
    with pytest.raises(UnusableInputError, match="NaN"):
        Data("d", images, torch.arange(40) % 2, 2)


def test_any_torch_dataset_can_be_read() -> None:
    dataset = TensorDataset(torch.rand(40, 1, 4, 4), torch.arange(40) % 2)
    assert len(from_dataset(dataset, classes=2)) == 40
    empty = TensorDataset(torch.rand(0, 1, 4, 4), torch.arange(0))
    with pytest.raises(UnusableInputError, match="no images"):
        from_dataset(empty, classes=2)


@pytest.mark.parametrize("fractions", [(0.2, 0.5), (0.01, 0.01), (0.9, 0.9)])
def test_parts_are_disjoint_complete_and_hold_every_class(fractions: tuple[float, float]) -> None:
    data = load_digits()
    test, client = fractions
    parts = split(data, test_fraction=test, client_fraction=client, seed=0)
    every = (parts.test, parts.history, parts.calibration, parts.scored, parts.auxiliary)
    assert sorted(np.concatenate(every)) == list(range(len(data)))
    assert sorted(parts.client) == sorted(np.concatenate(every[1:4]))
    for part in every:
        assert set(data.labels[part].tolist()) == set(range(10))


def test_the_smallest_allowed_class_is_in_every_part() -> None:
    labels = torch.arange(MIN_PER_CLASS * 3) % 3
    data = Data("small", torch.rand(len(labels), 1, 2, 2), labels, 3)
    for fractions in ((0.01, 0.01), (0.2, 0.7), (0.99, 0.99)):
        parts = split(data, test_fraction=fractions[0], client_fraction=fractions[1], seed=0)
        for part in (parts.test, parts.history, parts.calibration, parts.scored, parts.auxiliary):
            assert set(labels[part].tolist()) == {0, 1, 2}


def test_split_is_decided_by_its_seed() -> None:
    data = load_digits()
    first, again, other = (
        split(data, test_fraction=0.2, client_fraction=0.5, seed=seed).test for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    parts = split(load_digits(), test_fraction=0.2, client_fraction=0.5, seed=0)
    with pytest.raises(UnusableInputError, match="batch of 4000 is larger than the data"):
        check_room(parts, batch_sizes=(8, 4000), training=8)
    with pytest.raises(UnusableInputError, match="training batch of 4000"):
        check_room(parts, batch_sizes=(8,), training=4000)


@pytest.mark.parametrize("damage", ["bytes", "compressed", "encrypted", "method"])
def test_a_damaged_archive_is_refused_whatever_is_wrong_with_it(
    damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, images=np.ones((99, 8, 8), np.uint8), labels=np.arange(99) % 2)
    content = bytearray(path.read_bytes())
    if damage == "compressed":
        content[60:64] = b"\xff" * 4
    central = content.find(b"PK\x01\x02")
    if damage == "encrypted":
        content[6], content[central + 8] = 1, 1
    if damage == "method":
        content[8], content[central + 10] = 97, 97
    path.write_bytes(content)
    if damage == "bytes":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images", "no array")
            archive.writestr("labels", "no array")
    with pytest.raises(UnusableInputError, match=r"bad\.npz"):
        load_npz(path)
