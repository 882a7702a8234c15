"""The recorded client in simulation: the study's code at the models that the server sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradguard import Defense, NamedParameters
from gradguard.attacks.threat import Client
from gradguard.evaluation.batches import Batch, draw_batches
from gradguard.evaluation.cohort import OtherClients
from gradguard.evaluation.exchange import Message, mean
from gradguard.evaluation.observed.scenes import COHORT, POOLED, Scene
from gradguard.evaluation.observed.traffic import load_model
from gradguard.evaluation.running.bench import MEMO_BYTES, Bench
from gradguard.evaluation.running.memo import GradientMemo, ReleasingClient
from gradguard.evaluation.seeding import derive

BANK = 256
"""Batches that stand for what clients trained on besides the batch that is asked about."""

COMPANY_BYTES = 64 * 2**20
"""Of messages that are the same each time, kept by a simulated server for the sum of a cohort."""

_RANDOM = ("rng", "mask_seed")  # in a state: streams, which tell nothing of earlier rounds


@dataclass(frozen=True, eq=False)
class Simulation:
    """Clients as the study describes them, at recorded models.

    Guarantees:

    - the noise of attackers' rehearsals and of calibration messages are independent streams;
    - rehearsals use the attacker's images alone, calibration the study's calibration images.

    Args:
        withheld: Parameters that no recorded message has; simulated ones have zeros there.
        kept: Models whose gradients are kept at once.
    """

    bench: Bench
    defense: Defense
    withheld: tuple[str, ...]
    kept: int
    _memos: dict[tuple[Path, str], GradientMemo] = field(default_factory=dict)

    def model(self, path: Path) -> nn.Module:
        """The recorded model in the study's architecture."""
        model = self.bench.fresh_model(0)
        load_model(model, path)
        return model

    def client(self, scene: Scene, stream: str, which: str) -> Client:
        """What the server sees of a simulated client whose company holds images of ``which``."""
        names = ("observed", stream, scene.kind, scene.batch_size, len(scene.models))
        study, seed = self.bench.study, self.bench.seed(*names, str(scene.models[-1].parent.name))
        clients = tuple(
            self.defense.client(
                self.model(path),
                loss=study.training.criterion,
                batch_size=scene.batch_size,
                seed=seed,
                training=study.client,
            )
            for path in scene.models
        )
        memos = tuple(self._memo(path, which) for path in scene.models)
        repeats = len(scene.models) == 1 or scene.same_data
        repeats &= not draws(self.defense, clients[0].model)
        bank = self._bank(scene, which)
        return Played(scene, clients, memos, bank, self.withheld, seed, repeats)

    def calibration(self, scene: Scene) -> list[Batch]:
        """Batches on which the worst attack is chosen."""
        study = self.bench.study
        return draw_batches(
            *(self.bench.data, self.bench.parts.calibration),
            composition=composition_of(self.bench),
            batch_size=scene.batch_size,
            number=study.attack.calibration,
            seed=self.bench.seed("observed calibration", scene.batch_size),
        )

    def _memo(self, path: Path, which: str) -> GradientMemo:
        key = (path, which)
        if key not in self._memos:
            # Scenes come in the order of their rounds: what is oldest is not asked for soon.
            while len(self._memos) >= 2 * self.kept:
                del self._memos[next(iter(self._memos))]
            self._memos[key] = GradientMemo(MEMO_BYTES // (2 * self.kept))
        return self._memos[key]

    def _bank(self, scene: Scene, which: str) -> OtherClients:
        bench, data = self.bench, self.bench.data
        pool = getattr(bench.parts, which)
        if which == "auxiliary":
            images = data.images.clone()
            images[torch.from_numpy(pool)] = bench.auxiliary()[0]
            data = replace(data, images=images)
        seed = bench.seed("observed company", which, scene.batch_size)
        size = scene.batch_size
        return OtherClients(data, pool, composition_of(bench), size, seed=seed, room=0)


@dataclass(frozen=True, eq=False)
class Played:
    """One simulated client, in the rounds of a scene.

    Of a message alone, the rounds before it are played for what the defence remembers of them:
    with the same batch if the client held the same in all of them, else with others.

    Args:
        repeats: Whether a batch's message is the same each time, and may be kept.
    """

    scene: Scene
    clients: tuple[ReleasingClient, ...]
    memos: tuple[GradientMemo, ...]
    bank: OtherClients
    withheld: tuple[str, ...]
    seed: int
    repeats: bool = False
    _rng: np.random.Generator = field(init=False)
    _known: dict[int, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rng", np.random.default_rng(derive(self.seed, "company")))

    def __call__(self, inputs: Tensor, labels: Tensor) -> Message:
        message = self._seen(Batch(inputs, labels, np.empty(0)))
        if self.scene.kind == COHORT:
            number = self.scene.cohort - 1
            chosen = self._rng.choice(max(BANK, 2 * number), number, replace=False)
            message = mean(self._with_others(message, chosen))
        return message | {name: torch.zeros_like(message[name]) for name in self.withheld}

    def _with_others(self, own: Message, chosen: np.ndarray) -> Iterator[Message]:
        yield own
        for index in chosen:
            yield self._of_other(int(index))

    def _of_other(self, index: int) -> Message:
        if index in self._known:
            return self._known[index]
        message = self._seen(self.bank.batch(index))
        size = sum(part.numel() * part.element_size() for part in message.values())
        if self.repeats and (len(self._known) + 1) * size <= COMPANY_BYTES:
            self._known[index] = message
        return message

    def _seen(self, batch: Batch) -> Message:
        sent = self._sent(batch)
        if self.scene.kind == POOLED:
            return mean(sent)
        *_, last = sent
        return last

    def _sent(self, batch: Batch) -> Iterator[Message]:
        last = len(self.clients) - 1
        for index, (client, memo) in enumerate(zip(self.clients, self.memos, strict=True)):
            held = batch
            if index < last and not self.scene.same_data:
                held = self.bank.batch(int(self._rng.integers(BANK)))
            # The order of local training is another one in every round.
            number = index if index and memo.varies(client, held.inputs, held.labels) else 0
            grads = memo.gradients(client, held.inputs, held.labels, number)
            # All through one guard, whose state goes from round to round as a client's does.
            size = self.scene.batch_size
            yield self.clients[0].release(grads, batch_size=size, first=index == 0)


def composition_of(bench: Bench) -> str | None:
    """That of the study's batches; ``None``, a mixture, where it names several."""
    several = bench.study.attack.compositions
    return several[0] if len(several) == 1 else None


def remembers(defense: Defense, model: nn.Module) -> bool:
    """Whether a message depends on rounds before it, as with error feedback.

    >>> from gradguard import ErrorFeedback, KeepTopK
    >>> layer, top = nn.Linear(2, 3), KeepTopK(0.5)
    >>> [remembers(Defense("d", transform=t), layer) for t in (top, ErrorFeedback(top))]
    [False, True]
    """
    params, before = _begun(defense, model)
    generator = torch.Generator().manual_seed(0)
    grads: list[Tensor | None] = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) for _, p in params
    ]
    _, after = defense.chain.update(grads, before)
    return _changed(before, after)


def draws(defense: Defense, model: nn.Module) -> bool:
    """Whether a message of the same gradients differs from draw to draw, as with noise.

    >>> from gradguard import AddGaussian, Sign
    >>> layer = nn.Linear(2, 3)
    >>> [draws(Defense("d", transform=t), layer) for t in (Sign(), AddGaussian(0.1))]
    [False, True]
    """
    return _has_stream(_begun(defense, model)[1])


def _begun(defense: Defense, model: nn.Module) -> tuple[list[tuple[str, Tensor]], Any]:
    params = [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
    return params, defense.chain.init(NamedParameters(params))


def _has_stream(state: Any) -> bool:
    if isinstance(state, dict):
        return any(key in _RANDOM or _has_stream(part) for key, part in state.items())
    return isinstance(state, list) and any(_has_stream(part) for part in state)


def _changed(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return any(_changed(old, after[k]) for k, old in before.items() if k not in _RANDOM)
    if isinstance(before, list):
        return any(_changed(old, new) for old, new in zip(before, after, strict=True))
    if isinstance(before, Tensor):
        return not torch.equal(before, after)
    return bool(before != after)
