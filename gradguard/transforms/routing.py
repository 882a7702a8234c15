"""Routing by parameter name: one transform for some layers, or nothing sent from them at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from gradguard.core import Grads, GradTransform, Reads, State
from gradguard.finite import check_finite


class NamedParameters(Sequence[Tensor]):
    """Parameters in optimizer order together with their names: what ``init`` is given.

    A parameter that a model holds in two places, such as tied embeddings, has one name in messages
    and all of them in ``aliases``, which is what patterns are matched against.

    >>> params = NamedParameters({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)})
    >>> params.names, len(params), params[1].shape
    (('fc.weight', 'fc.bias'), 2, torch.Size([2]))
    """

    def __init__(
        self,
        named: dict[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        aliases: Sequence[tuple[str, ...]] | None = None,
    ) -> None:
        pairs = list(named.items() if isinstance(named, dict) else named)
        self.names = tuple(name for name, _ in pairs)
        self.aliases = [(name,) for name in self.names] if aliases is None else list(aliases)
        if twice := [name for name, times in Counter(self.names).items() if times > 1]:
            raise ValueError(
                f"two parameters are called {twice[0]!r}, so a message by name would lose one; "
                "give the optimizer names from one model that holds them all"
            )
        self._tensors: list[Tensor] = [tensor for _, tensor in pairs]

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> NamedParameters: ...
    def __getitem__(self, index: int | slice) -> Tensor | NamedParameters:
        if isinstance(index, slice):
            pairs = zip(self.names[index], self._tensors[index], strict=True)
            return NamedParameters(pairs, aliases=self.aliases[index])
        return self._tensors[index]

    def __len__(self) -> int:
        return len(self._tensors)


def named_parameters(
    groups: Sequence[dict[str, Any]], *, known: Sequence[tuple[str, Tensor]]
) -> list[Tensor] | NamedParameters:
    """The parameters of an optimizer's groups, with names where there are any.

    Args:
        groups: ``optimizer.param_groups``; torch keeps names there if it was given any.
        known: Names and parameters of the model, a shared parameter under each of its names; if
            given, all parameters must be among them.

    Raises:
        ValueError: A parameter is not among the known ones.
    """
    params = [p for group in groups for p in group["params"]]
    if known:
        by_id: dict[int, tuple[str, ...]] = {}
        for name, p in known:
            by_id[id(p)] = (*by_id.get(id(p), ()), name)
        if unknown := [i for i, p in enumerate(params) if id(p) not in by_id]:
            raise ValueError(
                f"parameters {unknown} of the optimizer are not in the model given to guard(); "
                "guard the optimizer with the model that holds them all"
            )
        aliases = [by_id[id(p)] for p in params]
        first = ((names[0], p) for names, p in zip(aliases, params, strict=True))
        return NamedParameters(first, aliases=aliases)
    names = [name for group in groups for name in group.get("param_names", ())]
    # Only some groups may have names: then none is used, rather than the wrong ones.
    return NamedParameters(zip(names, params, strict=True)) if len(names) == len(params) else params


def matching(pattern: str, params: Sequence[Tensor]) -> list[bool]:
    """Which parameters a shell pattern (``*``, ``?``, ``[...]``; case counts) selects.

    A shared parameter is selected if any of its names matches: its gradient is the sum over all
    its places, and would give away the one that the pattern means.

    Raises:
        ValueError: The parameters carry no names, or the pattern selects none of them. A
            defence that silently covers nothing would be worse than none.

    >>> matching("fc.*", NamedParameters({"conv.bias": torch.zeros(1), "fc.bias": torch.zeros(1)}))
    [False, True]
    """
    if not isinstance(params, NamedParameters):
        raise ValueError(
            f"pattern {pattern!r} needs parameter names, and these parameters have none; use "
            "guard(optimizer, transform, model=model) or build the optimizer from "
            "model.named_parameters()"
        )
    selected = [any(fnmatchcase(name, pattern) for name in names) for names in params.aliases]
    if not any(selected):
        names = ", ".join(params.names)
        raise ValueError(f"pattern {pattern!r} matches no parameter; names are {names}")
    return selected


@dataclass(frozen=True)
class Only:
    """Apply ``transform`` to the parameters whose name matches ``pattern``; leave the others.

    Guarantees:

    - matching gradients are transformed as if they were the whole message;
    - all others pass bitwise unchanged, so they go out as undefended as they came in;
    - a pattern that matches nothing raises.

    Args:
        pattern: Shell pattern over names, such as ``"head.*"``.
        transform: What is applied to the matching parameters.

    >>> from gradguard.transforms.clipping import ClipByValue
    >>> only = Only("head.*", ClipByValue(1.0))
    >>> params = NamedParameters({"body.bias": torch.zeros(1), "head.bias": torch.zeros(1)})
    >>> only.update([torch.tensor([5.0]), torch.tensor([5.0])], only.init(params))[0]
    [tensor([5.]), tensor([1.])]
    """

    pattern: str
    transform: GradTransform
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)

    def init(self, params: Sequence[Tensor]) -> State:
        selected = matching(self.pattern, params)
        return {"selected": selected, type(self.transform).__name__: self.transform.init(params)}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        selected, key = state["selected"], type(self.transform).__name__
        inside: Grads = [g if s else None for g, s in zip(grads, selected, strict=True)]
        changed, inner = self.transform.update(inside, state[key])
        out = [c if s else g for g, c, s in zip(grads, changed, selected, strict=True)]
        return out, {"selected": selected, key: inner}


@dataclass(frozen=True)
class Withhold:
    """Send zeros in place of the gradients whose name matches ``pattern``.

    Guarantees:

    - matching gradients are exactly zero, whatever they were, and present if they were present;
    - all others pass bitwise unchanged;
    - a pattern that matches nothing raises.

    A weight that the model holds in two places is withheld under either name where the guard was
    given ``model=``; an optimizer built from ``named_parameters()`` alone knows the first only.

    The layer is still trained by the other clients or not at all; the gradients of the layers
    below still carry what the withheld ones knew.

    Args:
        pattern: Shell pattern over names, such as ``"head.*"``.

    >>> withhold = Withhold("head.*")
    >>> params = NamedParameters({"body.bias": torch.zeros(1), "head.bias": torch.zeros(1)})
    >>> withhold.update([torch.tensor([5.0]), torch.tensor([5.0])], withhold.init(params))[0]
    [tensor([5.]), tensor([0.])]
    """

    pattern: str
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)

    def init(self, params: Sequence[Tensor]) -> State:
        return {"withheld": matching(self.pattern, params)}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        # NaN is refused even where it would be replaced: it says that training has gone wrong.
        check_finite(grads)
        pairs = zip(grads, state["withheld"], strict=True)
        return [torch.zeros_like(g) if w and g is not None else g for g, w in pairs], state


def _check_pattern(pattern: str) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern must be a shell pattern such as 'head.*', got {pattern!r}")
