from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradguard.evaluation import load_digits
from gradguard.evaluation.shift import DEGREES, NOISE, SHIFTS

IMAGES = load_digits().images[:64]
every_shift = pytest.mark.parametrize("name", SHIFTS)


@every_shift
def test_shape_type_and_range_are_kept(name: str) -> None:
    for images in (IMAGES, 5 - 3 * IMAGES.double(), torch.rand(2, 3, 6, 9)):
        shifted = SHIFTS[name](images, 0)
        assert shifted.shape == images.shape
        assert shifted.dtype == images.dtype
        assert shifted.min() >= images.min() - 1e-6
        assert shifted.max() <= images.max() + 1e-6


@every_shift
def test_images_are_not_modified_and_the_same_seed_gives_the_same(name: str) -> None:
    before = IMAGES.clone()
    assert torch.equal(SHIFTS[name](IMAGES, 3), SHIFTS[name](IMAGES, 3))
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("name", [name for name in SHIFTS if name != "none"])
def test_every_shift_but_none_changes_every_image(name: str) -> None:
    shifted = SHIFTS[name](IMAGES, 0)
    assert ((shifted - IMAGES).abs().flatten(1).max(dim=1).values > 0.1).all()
    assert torch.equal(SHIFTS["none"](IMAGES, 0), IMAGES)


def test_noise_has_its_standard_deviation_where_it_is_not_clamped() -> None:
    images = torch.full((10, 1, 50, 50), 0.5)
    images[0, 0, 0, :2] = torch.tensor([-9.5, 10.5])  # a range that the noise stays far within
    added = (SHIFTS["noise"](images, 0) - images)[1:]
    assert float(added.std()) == pytest.approx(NOISE * 20, rel=0.05)
    assert not torch.equal(SHIFTS["noise"](images, 0), SHIFTS["noise"](images, 1))


def test_blur_is_the_mean_of_nine_pixels() -> None:
    blurred = SHIFTS["blur"](IMAGES, 0)
    torch.testing.assert_close(blurred[7, 0, 3, 4], IMAGES[7, 0, 2:5, 3:6].mean())


def test_inverting_twice_gives_the_image() -> None:
    torch.testing.assert_close(SHIFTS["invert"](SHIFTS["invert"](IMAGES, 0), 0), IMAGES)


def bright_spot(images: Tensor) -> tuple[float, float]:
    """Centre of brightness of one image, in pixels from its centre: right and up."""
    rows, columns = np.indices(images.shape[2:])
    weight = images[0, 0].numpy() / float(images.sum())
    middle = [(side - 1) / 2 for side in images.shape[2:]]
    return float((weight * columns).sum() - middle[1]), float(middle[0] - (weight * rows).sum())


@pytest.mark.parametrize("shape", [(65, 65), (65, 129)])
def test_rotate_turns_by_its_angle_whatever_the_shape(shape: tuple[int, int]) -> None:
    images = torch.zeros(1, 1, *shape)
    images[0, 0, 31:34, shape[1] // 2 + 19 : shape[1] // 2 + 22] = 1.0  # 20 to the right
    right, up = bright_spot(SHIFTS["rotate"](images, 0))
    assert np.hypot(right, up) == pytest.approx(20, abs=0.5)
    assert np.degrees(np.arctan2(up, right)) == pytest.approx(DEGREES, abs=1)


@pytest.mark.parametrize("name", ["blur", "rotate"])
def test_what_is_no_image_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is for images .* got \(4, 7\)"):
        SHIFTS[name](torch.zeros(4, 7), 0)
