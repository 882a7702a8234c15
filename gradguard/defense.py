"""A defence: one named configuration that is both deployed and attacked."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from gradguard.client import Client
from gradguard.core import Chain, GradTransform, chain
from gradguard.dpsgd import DPSGD
from gradguard.fedavg import FedAvgClient, LocalTraining
from gradguard.optimizer import GuardedOptimizer, guard
from gradguard.serialization import nearest, transform_from_plain, transform_to_plain

if TYPE_CHECKING:
    from gradguard.dp import PrivacyLedger, PrivateClient, PrivateTraining

_FIELDS = ("name", "cohort", "dp", "transform")
_TEXTS = ("name", "pattern")

MOST_CLIENTS = 100_000
"""The largest cohort: every client of it is played."""


class Attached(NamedTuple):
    """What :meth:`Defense.attach` returns: use all three in place of what was given."""

    model: nn.Module
    optimizer: GuardedOptimizer
    loader: Any

    def reset(self, seed: int | None = None) -> None:
        """Forget residuals and start new random streams; see :meth:`GuardedOptimizer.reset`."""
        self.optimizer.reset(seed)


@dataclass(frozen=True)
class Defense:
    """One defence by name: what is deployed on a client is what the evaluation attacks.

    Guarantees:

    - a round trip through ``to_dict``, ``to_toml`` and ``to_json`` gives an equal defence;
    - ``attach`` and ``client`` run the same transform code;
    - with ``dp`` the transforms run after the noise, so they cannot weaken its guarantee.

    Args:
        name: How reports call it; not empty.
        transform: A transform or a sequence of them, applied left to right. An empty sequence is
            no defence at all. Kept as a chain.
        dp: DP-SGD before the transforms, or ``None``.
        cohort: How many clients' messages the server sees the sum of, and nothing else, as with
            secure aggregation. gradguard does not aggregate: it is what the evaluation takes to
            be so, and what :meth:`attach` asks to be assured of.

    >>> from gradguard.transforms.sparsification import KeepTopK
    >>> print(Defense("top-k", transform=KeepTopK(0.01)).to_toml(), end="")
    name = "top-k"
    transform = [
        { KeepTopK = { ratio = 0.01, scope = "global" } },
    ]
    """

    name: str
    _: KW_ONLY
    transform: GradTransform | Sequence[GradTransform]
    dp: DPSGD | None = None
    cohort: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a defence needs a name, got {self.name!r}")
        given = self.transform
        parts = [given] if isinstance(given, GradTransform) else list(given)
        for part in parts:
            # A class has init and update too: Sign in place of Sign().
            if isinstance(part, type) or not isinstance(part, GradTransform):
                raise TypeError(f"defence {self.name!r}: expected a transform, got {part!r}")
        if self.dp is not None and not isinstance(self.dp, DPSGD):
            raise TypeError(f"defence {self.name!r}: expected dp=DPSGD(...), got {self.dp!r}")
        whole = isinstance(self.cohort, int) and not isinstance(self.cohort, bool)
        if not whole or not 1 <= self.cohort <= MOST_CLIENTS:
            raise ValueError(
                f"defence {self.name!r}: cohort must be a whole number from 1 to {MOST_CLIENTS:,} "
                f"(the clients whose messages are summed), got {self.cohort!r}"
            )
        # Always a chain, so that equal defences compare equal however they were written.
        object.__setattr__(self, "transform", chain(*parts))

    @property
    def chain(self) -> Chain:
        """The transforms, in order."""
        assert isinstance(self.transform, Chain)  # by __post_init__
        return self.transform

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: Any = None,
        *,
        ledger: PrivacyLedger | None = None,
        criterion: nn.Module | None = None,
        aggregated: bool = False,
    ) -> Attached | PrivateTraining:
        """Put the defence into a training loop, in front of ``optimizer``.

        Args:
            loader: Needed by ``dp``, which replaces its sampling.
            ledger: With ``dp``, that of this data set if it has been trained on before.
            criterion: With ``dp``, the loss where it is not plain cross-entropy: ghost clipping
                has to run it example by example. Without ``dp`` it is not looked at.
            aggregated: That your framework shows the server only the sum of the messages of
                ``cohort`` clients. Without it a defence with a cohort is refused.

        Returns:
            ``model, optimizer, loader`` to train with; with ``dp`` as a
            :class:`gradguard.dp.PrivateTraining`.

        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> plain = Defense("none", transform=[])
        >>> type(plain.attach(layer, torch.optim.SGD(layer.parameters(), lr=0.1)).optimizer)
        <class 'gradguard.optimizer.GuardedOptimizer'>
        """
        if self.cohort > 1 and not aggregated:
            raise ValueError(
                f"defence {self.name!r} rests on a server that sees only the sum of the messages "
                f"of {self.cohort} clients, and gradguard does not aggregate: say "
                "attach(..., aggregated=True) if your framework's secure aggregation does, and "
                "drop the cohort if not"
            )
        if self.dp is None:
            return Attached(model, guard(optimizer, self.chain, model=model), loader)
        if loader is None:
            raise ValueError(
                f"defence {self.name!r} has DP-SGD, whose guarantee rests on how batches are "
                "sampled: attach(model, optimizer, loader)"
            )
        from gradguard.dp import make_private  # Opacus takes seconds to import

        return make_private(
            model,
            optimizer,
            loader,
            noise_multiplier=self.dp.noise_multiplier,
            max_grad_norm=self.dp.max_grad_norm,
            after=self.chain,
            mode=self.dp.mode,
            accountant=self.dp.accountant if ledger is None else None,
            ledger=ledger,
            criterion=criterion,
        )

    def client(
        self,
        model: nn.Module,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        batch_size: int | None = None,
        seed: int | None = None,
        training: LocalTraining | None = None,
    ) -> Client | PrivateClient | FedAvgClient:
        """The client as a black box that an attacker may query.

        It is one client of the cohort, and its message is that from before the aggregation. See
        :class:`Client`, and with ``dp`` :class:`gradguard.dp.PrivateClient`, which is the one
        that uses ``batch_size``.

        Args:
            training: What a FedAvg client does before it sends the change of the model, see
                :class:`FedAvgClient`; without it the message is a gradient. Refused with ``dp``.
        """
        if training is not None:
            if self.dp is not None:
                raise ValueError(
                    f"defence {self.name!r} has DP-SGD, whose noise and epsilon are for one step "
                    "on clipped gradients; they say nothing of a change by several local steps. "
                    "Leave out dp or the local training"
                )
            return FedAvgClient(model, self.chain, training, loss=loss, seed=seed)
        if self.dp is None:
            return Client(model, self.chain, loss=loss, seed=seed)
        from gradguard.dp import PrivateClient

        return PrivateClient(
            model, self.dp, self.chain, loss=loss, batch_size=batch_size, seed=seed
        )

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers, lists and dicts, as in a study's ``[[defense]]`` table."""
        dp = {} if self.dp is None else {"dp": self.dp.to_dict()}
        cohort = {} if self.cohort == 1 else {"cohort": self.cohort}
        return {"name": self.name, **cohort, **dp, "transform": transform_to_plain(self.chain)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Defense:
        """The defence that ``plain`` describes.

        Raises:
            ValueError: A key is unknown (the nearest known one is named), missing or unusable.
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f"a defence is a table with {', '.join(_FIELDS)}; got {plain!r}")
        name = plain.get("name")
        where = f"defence {name!r}"
        for key in plain:
            if key not in _FIELDS:
                raise ValueError(f"{where}: unknown key {key!r}; {nearest(key, _FIELDS)}")
        # With DP-SGD there is a defence without any transform; else the file may lack a line.
        if "transform" not in plain and "dp" not in plain:
            raise ValueError(f"{where}: transform is missing; write transform = [] for no defence")
        transform = transform_from_plain(plain.get("transform", []), where=f"{where}: transform")
        dp = _dp_from(plain["dp"], where=f"{where}: dp") if "dp" in plain else None
        cohort = plain.get("cohort", 1)
        return cls(name=name, transform=transform, dp=dp, cohort=cohort)  # type: ignore[arg-type]

    def to_toml(self) -> str:
        """As the text of one ``[[defense]]`` table, without its header."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> Defense:
        """The inverse of :meth:`to_toml`; raises as :meth:`from_dict` does."""
        return cls.from_dict(_parsed(tomllib.loads, text, "TOML"))

    def to_json(self) -> str:
        """As strict JSON; infinity is written as the string ``"inf"``."""
        # JSON has no infinity, and a bare Infinity is refused by most readers: a string instead.
        return json.dumps(_infinities(self.to_dict(), math.inf, "inf"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Defense:
        """The inverse of :meth:`to_json`; raises as :meth:`from_dict` does."""
        return cls.from_dict(_infinities(_parsed(json.loads, text, "JSON"), "inf", math.inf))


def _dp_from(plain: Any, *, where: str) -> DPSGD:
    known = [f.name for f in fields(DPSGD) if f.name != "_"]
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: expected a table of {', '.join(known)}; got {plain!r}")
    for key in plain:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
    try:
        return DPSGD(**plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _parsed(parse: Callable[[str], Any], text: str, what: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:  # both parsers raise subclasses of it
        raise ValueError(
            f"a defence in {what} was expected, but the text does not parse: {error}"
        ) from None


def _infinities(value: Any, old: object, new: object) -> Any:
    if isinstance(value, dict):
        # Names and patterns may be any text, "inf" included.
        return {k: v if k in _TEXTS else _infinities(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_infinities(v, old, new) for v in value]
    return new if type(value) is type(old) and value == old else value
