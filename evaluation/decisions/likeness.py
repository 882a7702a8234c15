"""Whether a message could be one of the simulated ones; if not, what they show is not about it.

A success rate is measured on simulated messages. Of a real one it speaks only if the model, the
defence, the batch size and the direction are those that were simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradguard.attacks.head import find_head

COORDINATES = 2**13  # of the output layer, which every attack reads


# Factors. A batch that is more even than any simulated one has a smaller gradient; and simulated
# messages share images, so that they lie nearer to each other than to a client's.
ROOM, ROOM_APART = 2.0, 1.25


@dataclass(eq=False)
class Likeness:
    """Collects simulated messages, and then says in what another one is unlike all of them.

    Three things are compared: the norm; the share of values that are not zero; and how far the
    output layer is from that of the nearest simulated message, against how far these are apart.

    Guarantees:

    - of messages that are drawn as the simulated ones, from the same images, at most five in
      ``messages + 1`` are called unlike.

    Not guaranteed: that one from another model or defence is noticed. Noise hides where a message
    points, and a message of an even batch is small and points nowhere in particular.

    Args:
        num_classes: To find the output layer.
    """

    num_classes: int
    _norms: list[float] = field(default_factory=list)
    _shares: list[float] = field(default_factory=list)
    _heads: list[Tensor] = field(default_factory=list)

    def add(self, message: Mapping[str, Tensor]) -> None:
        """One more simulated message."""
        self._norms.append(_norm(message))
        self._shares.append(_share_sent(message))
        self._heads.append(self._head(message))

    def unlike(self, message: Mapping[str, Tensor]) -> tuple[str, ...]:
        """In what the message is unlike all simulated ones, in words; empty if in nothing."""
        found = []
        norm, low, high = _norm(message), min(self._norms), max(self._norms)
        if not low / ROOM <= norm <= high * ROOM:
            found.append(f"its norm is {norm:.3g}, theirs {low:.3g} to {high:.3g}")
        share, low, high = _share_sent(message), min(self._shares), max(self._shares)
        if not low <= share <= high:
            found.append(
                f"of its values {share:.3g} are not zero, of theirs {low:.3g} to {high:.3g}"
            )
        return (*found, *self._apart(self._head(message)))

    def _apart(self, head: Tensor) -> tuple[str, ...]:
        heads = torch.stack(self._heads)
        among = torch.cdist(heads, heads, compute_mode="donot_use_mm_for_euclid_dist")
        among.fill_diagonal_(math.inf)
        most = ROOM_APART * float(among.min(dim=1).values.max())
        nearest, mirrored = (float((heads - sign * head).norm(dim=1).min()) for sign in (1.0, -1.0))
        if nearest <= most:
            return ()
        words = (
            f"its output layer is {nearest:.3g} from that of the nearest, expected is at most "
            f"{most:.3g}"
        )
        if mirrored <= most:
            words += "; it may be after minus before, in place of before minus after"
        return (words,)

    def _head(self, message: Mapping[str, Tensor]) -> Tensor:
        weight = message[find_head(message, self.num_classes).weight].detach().flatten()
        return weight[:: max(1, math.ceil(weight.numel() / COORDINATES))].double()


def _norm(message: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in message.values()))


def _share_sent(message: Mapping[str, Tensor]) -> float:
    sent = sum(int(part.count_nonzero()) for part in message.values())
    return sent / max(1, sum(part.numel() for part in message.values()))
