"""Poisson sampling: every example is in a batch with the same probability, independently.

The accounting holds for this and for nothing else; shuffled batches are another mechanism (Chua
et al., "How Private are DP-SGD Implementations?", 2024, arXiv:2403.17673).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from opacus.data_loader import DPDataLoader, wrap_collate_with_empty
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)


class PoissonSampler(UniformWithReplacementSampler):  # type: ignore[misc]
    """Opacus' Poisson sampler, telling when its batches begin anew."""

    on_start: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        if self.on_start is not None:
            self.on_start()
        yield from super().__iter__()


class PoissonLoader(DPDataLoader):  # type: ignore[misc]
    """Opacus' loader around a sampler that is given: its own makes the plain one itself."""

    def __init__(self, loader: DataLoader[Any], sampler: PoissonSampler) -> None:
        self.sample_rate, self.distributed = sampler.sample_rate, False
        self.sampler_of_batches = sampler
        dataset = loader.dataset
        collate = wrap_collate_with_empty(collate_fn=loader.collate_fn)
        collate([dataset[0]])  # shows it what an empty batch must look like, should it come first
        kept = (
            *("num_workers", "pin_memory", "timeout", "worker_init_fn"),
            *("multiprocessing_context", "prefetch_factor", "persistent_workers"),
        )
        # Past Opacus' own, which builds the sampler.
        super(DPDataLoader, self).__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            generator=sampler.generator,
            **{name: getattr(loader, name) for name in kept},
        )


def poisson_loader(loader: DataLoader[Any], generator: torch.Generator) -> PoissonLoader:
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
    known = isinstance(batches, UniformWithReplacementSampler)
    if not known:
        _check_sampler(loader)
    if len(loader) == 0:
        raise ValueError(
            f"the loader has no batch: {_size(loader)} examples with batch_size "
            f"{loader.batch_size} and drop_last; the sample rate would be above 1"
        )
    # A private loader's length is rounded: taken for the rate, each round would have another.
    rate = getattr(batches, "sample_rate", 0.0) if known else 1 / len(loader)
    sampler = PoissonSampler(num_samples=_size(loader), sample_rate=rate, generator=generator)
    return PoissonLoader(loader, sampler)


def rate_of(loader: PoissonLoader) -> float:
    """The probability with which the loader really samples each example."""
    # Not 1 / len(loader), as Opacus books it: for 93 batches its sampler has 92.
    return float(loader.sampler_of_batches.sample_rate)


def records_of(loader: PoissonLoader) -> int:
    """How many records the loader samples from."""
    return int(loader.sampler_of_batches.num_samples)


def expected_batch_size(loader: PoissonLoader) -> int:
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
