"""Templates regressed from rehearsed messages: they find a leak, and do not imagine one."""

from __future__ import annotations

import numpy as np

from gradguard.attacks.learning.readings import Readings
from gradguard.attacks.learning.template_scores import CHANNELS, fit_template_scores


def _readings(body: np.ndarray, classes: int = 4) -> Readings:
    n = len(body)
    return Readings(
        np.zeros((n, classes, 3), np.float32),
        np.zeros((n, classes), np.float32),
        body.astype(np.float32),
        np.zeros((n, classes, 1), np.float32),
        np.zeros((n, 1)),
    )


def test_a_linear_message_is_read_back() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 200)
    templates = rng.standard_normal((4, 50))
    fitted, _ = fit_template_scores(_readings(shares @ templates), shares)
    new = rng.dirichlet(np.ones(4), 20)
    scores = fitted.score(_readings(new @ templates))
    np.testing.assert_allclose(scores[:, :, list(CHANNELS).index("body")], new, atol=0.02)


def test_honest_scores_of_pure_noise_do_not_follow_the_labels() -> None:
    """The in-sample scores of the same noise do: the folds are what makes them honest."""
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(4), 200)
    readings = _readings(rng.standard_normal((200, 2000)))
    fitted, honest = fit_template_scores(readings, shares)
    channel = list(CHANNELS).index("body")

    def correlation(scores: np.ndarray) -> float:
        return abs(float(np.corrcoef(scores[:, :, channel].ravel(), shares.ravel())[0, 1]))

    assert correlation(honest) < 0.15
    assert correlation(fitted.score(readings)) > 0.5


def test_a_withheld_head_gives_finite_scores() -> None:
    rng = np.random.default_rng(2)
    _, honest = fit_template_scores(
        _readings(rng.standard_normal((40, 10))), rng.dirichlet(np.ones(4), 40)
    )
    assert np.isfinite(honest).all()
