"""A client's defence over the rounds of federated averaging, with its memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from gradguard.core import GradTransform, State
from gradguard.randomness import reseeded
from gradguard.updates.layout import (
    Entries,
    UpdateLayout,
    layout_of_entries,
    layout_of_model,
)
from gradguard.updates.protection import Buffers, protect
from gradguard.updates.state_arrays import state_from_arrays, state_to_arrays


class UpdateGuard:
    """:func:`gradguard.protect` for one client, round after round.

    Where a framework makes a client anew in every round, as Flower does, carry
    :meth:`state_to_arrays` over to :meth:`load_arrays`: without it error feedback forgets what it
    owes.

    Guarantees:

    - a round that raises leaves the state as it was;
    - after a round trip through arrays the next message is bitwise the same.

    Args:
        transform: The defence.
        model: The client's, for what is a parameter and what a buffer; not changed. Where there
            is no model at hand its entries do, see
            :func:`gradguard.updates.layout.layout_of_entries`.
        buffers: ``"withhold"`` or ``"send"``, see :func:`gradguard.protect`.

    >>> import torch
    >>> from gradguard import ErrorFeedback, KeepTopK
    >>> model = nn.Linear(2, 1, bias=False)
    >>> guard = UpdateGuard(ErrorFeedback(KeepTopK(0.5)), model)
    >>> before, after = {"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[3.0, 2.0]])}
    >>> guard.protect(before, after), guard.protect(before, after)
    ({'weight': tensor([[3., 0.]])}, {'weight': tensor([[0., 4.]])})
    """

    def __init__(
        self,
        transform: GradTransform,
        model: nn.Module | Entries,
        *,
        buffers: Buffers | None = None,
    ) -> None:
        if isinstance(transform, type) or not isinstance(transform, GradTransform):
            raise TypeError(f"transform must have init and update, got {transform!r}")
        self.transform, self.buffers = transform, buffers
        self.layout, entries = _layout_and_entries(model)
        self._params = self.layout.named_parameters(entries)
        self.state: State = transform.init(self._params)

    def protect(self, before: Entries, after: Entries) -> dict[str, Tensor]:
        """The defended change from ``before`` to ``after``; see :func:`gradguard.protect`."""
        update, self.state = protect(
            before, after, self.transform, self.state, layout=self.layout, buffers=self.buffers
        )
        return update

    def reset(self, seed: int | None = None) -> None:
        """As before the first round: no residuals, and fresh random streams.

        Args:
            seed: For simulation only: clients that share it add the same noise.
        """
        self.state = reseeded(self.transform.init(self._params), seed)

    def draw_anew(self) -> None:
        """Replace the random streams by fresh ones, and keep the rest of the memory.

        For a state of which it is not known that nothing was sent from it: two messages with the
        same noise have a difference without any.
        """
        self.state = reseeded(self.state)

    def state_to_arrays(self) -> tuple[dict[str, np.ndarray], str]:
        """Everything that the next round needs, as arrays and JSON."""
        return state_to_arrays(self.state)

    def load_arrays(self, arrays: Mapping[str, np.ndarray], text: str) -> None:
        """Continue from what :meth:`state_to_arrays` gave; on an error nothing changes.

        Load each state once, or call :meth:`draw_anew` after it: two messages from one state
        have the same noise, and their difference has none.

        Raises:
            ValueError: It belongs to another transform or model, or was changed on its way.
        """
        like = self.transform.init(self._params)
        self.state = state_from_arrays(arrays, text, like=like)

    def __repr__(self) -> str:
        return f"UpdateGuard({self.transform!r}, buffers={self.buffers!r})"


def _layout_and_entries(model: nn.Module | Entries) -> tuple[UpdateLayout, Entries]:
    if isinstance(model, nn.Module):
        return layout_of_model(model), model.state_dict()
    return layout_of_entries(model), model
