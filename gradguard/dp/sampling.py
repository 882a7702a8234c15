"""Poisson sampling: every example is in a batch with the same probability, independently.

The accounting holds for this and for nothing else; shuffled batches are another mechanism (Chua
et al., "How Private are DP-SGD Implementations?", 2024, arXiv:2403.17673).
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.data_loader import DPDataLoader
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)


def poisson_loader(loader: DataLoader[Any], generator: torch.Generator) -> DPDataLoader:
    """A loader with the same data and mean batch size that samples by Poisson.

    Args:
        generator: Where the sampling coins come from. They must be secret, so the global
            generator, which scripts seed with a constant, is not used.

    Raises:
        TypeError, ValueError: The loader's own sampling cannot be replaced without changing what
            it means.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError("an IterableDataset cannot be sampled by Poisson; use a map-style dataset")
    batches = loader.batch_sampler
    if type(batches) is not UniformWithReplacementSampler:
        _check_sampler(loader)
    if len(loader) == 0:
        raise ValueError(
            f"the loader has no batch: {_size(loader)} examples with batch_size "
            f"{loader.batch_size} and drop_last; the sample rate would be above 1"
        )
    # Not from_data_loader, which warns of drop_last each time although nothing is dropped.
    kept = (
        *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
        *("multiprocessing_context", "prefetch_factor", "persistent_workers"),
    )
    return DPDataLoader(
        loader.dataset,
        sample_rate=1 / len(loader),
        generator=generator,
        **{name: getattr(loader, name) for name in kept},
    )


def rate_of(loader: DPDataLoader) -> float:
    """The probability with which the loader really samples each example."""
    # Not 1 / len(loader), as Opacus books it: for 93 batches its sampler has 92.
    sampler = loader.batch_sampler
    assert isinstance(sampler, UniformWithReplacementSampler)
    return float(sampler.sample_rate)


def expected_batch_size(loader: DPDataLoader) -> int:
    """The public constant that sums are divided by, at least 1."""
    # int() as in Opacus would give 48 for 49 * (1 / 49) * 49; the constant is public either way.
    return max(1, round(_size(loader) * rate_of(loader)))


def _check_sampler(loader: DataLoader[Any]) -> None:
    batches, sampler = loader.batch_sampler, loader.sampler
    if batches is None or type(batches) is not BatchSampler:
        raise ValueError(
            f"expected a loader with a batch size, got one with {type(batches).__name__}: its "
            "sample rate is not known. Use DataLoader(dataset, batch_size=...)"
        )
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == _size(loader)
    )
    if not plain:
        raise ValueError(
            f"{type(sampler).__name__} is refused: it gives examples other chances than the "
            "accounting assumes, and Poisson sampling would discard it silently. Use shuffle=True "
            "over the records that are to be trained on"
        )


def _size(loader: DataLoader[Any]) -> int:
    return len(loader.dataset)  # type: ignore[arg-type]  # map-style by the check above
