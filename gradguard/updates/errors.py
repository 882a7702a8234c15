"""What is wrong with a model update; nothing is sent."""

from __future__ import annotations

from gradguard.finite import NonFiniteGradientError


class UpdateError(ValueError):
    """Two models that are no round of local training: names, shapes, dtypes or ties differ."""


class NonFiniteUpdateError(NonFiniteGradientError):
    """An entry of a model update is NaN or infinite, so nothing was sent and no noise spent."""

    def __str__(self) -> str:
        return (
            f"{self.name!r} {self.what}; expected finite numbers. Do not send this round: local "
            "training has diverged, or the model received was not finite"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.index, self.name, self.what)


def _rebuild(index: int, name: str | None, what: str) -> NonFiniteUpdateError:
    return NonFiniteUpdateError(index, name=name, what=what)
