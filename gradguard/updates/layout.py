"""What the entries of a model are: parameters, buffers, and names for one and the same tensor.

A client of federated averaging sends a ``state_dict``, which holds more than parameters. Counters
of BatchNorm must not count toward a clipping norm, its running statistics are averages of the
client's data, and a weight that a model holds in two places must not be noised twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gradguard.transforms.routing import NamedParameters
from gradguard.updates.errors import UpdateError

Entries = Mapping[str, Tensor]
"""A model by name, as ``state_dict()`` gives it."""

STATISTICS = ("running_mean", "running_var")
"""Last parts of names: what torch's normalisation layers learn from the data without gradients."""


@dataclass(frozen=True)
class UpdateLayout:
    """The entries of a model by their part in a message, in the model's order.

    Args:
        parameters: Trained by gradients and transformed; of several names for one tensor the
            first that is a parameter's.
        buffers: All floating-point entries that are not: statistics, tables, constants.
        counters: Entries that hold no floating-point numbers.
        frozen: Parameters that are not trained.
        ties: Every further name of a tensor, with the one that it has above.
    """

    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    ties: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        tied = tuple(name for name, _ in self.ties)
        return frozenset(self.parameters + self.buffers + self.counters + self.frozen + tied)

    def named_parameters(self, entries: Entries) -> NamedParameters:
        """The parameters among ``entries``, with all their names, as ``init`` wants them."""
        further: dict[str, tuple[str, ...]] = {}
        for name, first in self.ties:
            further[first] = (*further.get(first, ()), name)
        return NamedParameters(
            [(name, entries[name]) for name in self.parameters],
            aliases=[(name, *further.get(name, ())) for name in self.parameters],
        )


def layout_of_model(model: nn.Module) -> UpdateLayout:
    """The layout of what ``model.state_dict()`` gives; the model knows what is a parameter.

    Raises:
        UpdateError: One tensor is trained under one name and frozen under another.

    >>> layout = layout_of_model(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    >>> layout.parameters, layout.buffers, layout.counters
    (('0.weight', '0.bias', '1.weight', '1.bias'), ('1.running_mean', '1.running_var'), \
('1.num_batches_tracked',))
    """
    trained = dict(model.named_parameters(remove_duplicate=False))
    frozen = {name for name, p in trained.items() if not p.requires_grad}
    return _layout(model.state_dict(keep_vars=True), set(trained) - frozen, frozen)


def layout_of_entries(entries: Entries) -> UpdateLayout:
    """The layout by names and dtypes alone, where no model is at hand.

    Floating-point entries are parameters unless their names end in :data:`STATISTICS`. A buffer
    of another name is therefore taken for a parameter, and so is a frozen parameter; with
    :func:`layout_of_model` it is not.
    """
    trained = {
        name
        for name, tensor in entries.items()
        if tensor.is_floating_point() and name.rpartition(".")[2] not in STATISTICS
    }
    return _layout(entries, trained, set())


def _layout(entries: Entries, trained: set[str], frozen: set[str]) -> UpdateLayout:
    together: dict[object, list[str]] = {}
    for name, tensor in entries.items():
        together.setdefault(_memory(tensor) if tensor.numel() else name, []).append(name)
    first_of: dict[str, str] = {}
    for names in together.values():
        learnt = [name for name in names if name in trained]
        if learnt and any(name in frozen for name in names):
            raise UpdateError(
                f"{learnt[0]!r} is trained and, under another of its names {names}, frozen; let "
                "both require a gradient or none"
            )
        # A parameter before a buffer: a buffer is withheld or sent as it is, a parameter never.
        first_of |= dict.fromkeys(names, next(iter(learnt or names)))
    found: dict[str, list[str]] = {"parameters": [], "buffers": [], "counters": [], "frozen": []}
    for name, tensor in entries.items():
        if first_of[name] != name:
            continue
        if name in trained or name in frozen:
            found["parameters" if name in trained else "frozen"].append(name)
        else:
            found["buffers" if tensor.is_floating_point() else "counters"].append(name)
    ties = tuple((name, first) for name, first in first_of.items() if name != first)
    return UpdateLayout(**{k: tuple(v) for k, v in found.items()}, ties=ties)


def _memory(tensor: Tensor) -> object:
    # Not the tensor's identity: state_dict() makes new tensors that share the old ones' memory.
    start, kind = tensor.data_ptr(), (tensor.dtype, tensor.shape, tensor.stride())
    return start, tensor.device, kind
