"""DP-SGD as a configuration: what :class:`gradguard.Defense` stores; Opacus runs it."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

MODES = ("hooks", "ghost")
ACCOUNTANTS = ("prv", "rdp")


@dataclass(frozen=True)
class DPSGD:
    """Clip each example's gradient, sum, and add Gaussian noise, before any transform.

    The noise on the sum has standard deviation ``noise_multiplier * max_grad_norm``. What a study
    or a file says about DP-SGD is this; :func:`gradguard.dp.make_private` does it.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm; above 0.
        max_grad_norm: Longest gradient that one example contributes, in gradient units; above 0.
            A sequence clips each trainable parameter to a norm of its own, in optimizer order.
        delta: At which epsilon is reported; in (0, 1), and well below one over the number of
            examples. It changes no noise.
        mode: ``"hooks"`` holds every example's gradient; ``"ghost"`` only their norms, which
            takes less memory and a second backward pass.
        accountant: ``"prv"`` or ``"rdp"``. Both give upper values of epsilon; rdp's is looser.

    Martín Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv:1607.00133.

    >>> DPSGD(noise_multiplier=1.0, max_grad_norm=0.5).radius
    0.5
    """

    noise_multiplier: float
    max_grad_norm: float | tuple[float, ...]
    _: KW_ONLY
    delta: float = 1e-5
    mode: str = "hooks"
    accountant: str = "prv"

    def __post_init__(self) -> None:
        check_number("noise_multiplier", self.noise_multiplier)
        if isinstance(self.max_grad_norm, list):  # TOML and JSON have no tuples
            object.__setattr__(self, "max_grad_norm", tuple(self.max_grad_norm))
        check_norms(self.max_grad_norm)
        if not _is_number(self.delta) or not 0 < self.delta < 1:
            raise ValueError(f"delta must be a number between 0 and 1, got {self.delta!r}")
        check_choice("mode", self.mode, MODES)
        check_accountant(self.accountant)
        if self.mode == "ghost" and isinstance(self.max_grad_norm, tuple):
            raise ValueError(
                "ghost clipping knows one norm for all parameters; use mode 'hooks' for a norm "
                "per parameter"
            )

    @property
    def radius(self) -> float:
        """The longest contribution of one example over all parameters."""
        return radius(self.max_grad_norm)

    def to_dict(self) -> dict[str, Any]:
        """As in the ``dp`` entry of a study's ``[[defense]]`` table."""
        norm = self.max_grad_norm
        return {
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": list(norm) if isinstance(norm, tuple) else norm,
            "delta": self.delta,
            "mode": self.mode,
            "accountant": self.accountant,
        }


def radius(max_grad_norm: float | tuple[float, ...]) -> float:
    """The joint norm of one norm, or of one per parameter.

    >>> radius((3.0, 4.0))
    5.0
    """
    return math.hypot(*max_grad_norm) if isinstance(max_grad_norm, tuple) else max_grad_norm


def check_norms(max_grad_norm: object) -> None:
    """Raise unless this is a positive number or a sequence of them."""
    norms = max_grad_norm if isinstance(max_grad_norm, tuple) else (max_grad_norm,)
    if not norms:
        raise ValueError("max_grad_norm must be a number or one number per parameter, got none")
    for norm in norms:
        check_number("max_grad_norm", norm)


def check_number(name: str, value: Any, *, least: float | None = None) -> None:
    """Raise unless ``value`` is finite and positive, or at least ``least``."""
    fits = (
        _is_number(value) and value < math.inf and (value > 0 if least is None else value >= least)
    )
    if not fits:
        bound = "above 0" if least is None else f"of at least {least:g}"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_accountant(name: object) -> None:
    """Raise unless ``name`` is an accountant whose epsilon is an upper value."""
    if name == "gdp":
        raise ValueError(
            "the gdp accountant is refused: its central-limit approximation reports less epsilon "
            "than is spent (1.62 where 2.85 is true); use 'prv' or 'rdp'"
        )
    check_choice("accountant", name, ACCOUNTANTS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
