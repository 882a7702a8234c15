from __future__ import annotations

from gradguard import DPSGD, AddGaussian, Defense, Sign
from gradguard.evaluation.nesting import nested, weak_attacks, weak_pooling
from tests.evaluation.examples import NONE, row

NOISE = Defense("noise", transform=AddGaussian(0.1))
BOTH = Defense("noise, sign", transform=[AddGaussian(0.1), Sign()])
SIGN = Defense("sign", transform=Sign())
ALL = [NONE, NOISE, BOTH, SIGN]


def test_a_defence_is_nested_in_those_that_start_with_it() -> None:
    assert set(nested(ALL)) == {
        *(("none", "noise"), ("none", "noise, sign"), ("none", "sign")),
        ("noise", "noise, sign"),
    }


def test_a_longer_defence_that_leaks_clearly_more_gives_a_warning() -> None:
    low = row(defense="noise", worst_asr=0.5, worst_ci=(0.45, 0.55))
    high = row(defense="noise, sign", worst_asr=0.9, worst_ci=(0.85, 0.95))
    (warning,) = weak_attacks(ALL, [low, high])
    assert warning.startswith("attack too weak here: ")
    assert "understate what 'noise' leaks" in warning


def test_overlapping_intervals_other_cells_and_unrelated_defences_give_none() -> None:
    low = row(defense="noise", worst_asr=0.5, worst_ci=(0.45, 0.55))
    near = row(defense="noise, sign", worst_asr=0.6, worst_ci=(0.54, 0.66))
    elsewhere = row(defense="noise, sign", stage="trained", worst_ci=(0.9, 1.0))
    unrelated = row(defense="sign", worst_ci=(0.9, 1.0))
    assert weak_attacks(ALL, [low, near, unrelated]) == []
    assert weak_attacks(ALL, [low, elsewhere]) == []


def test_dp_sgd_is_nested_in_the_same_with_more_noise_or_more_after_it_and_in_nothing_else() -> (
    None
):
    less = Defense("z=1", dp=DPSGD(1.0, 1.0), transform=[])
    more = Defense("z=2", dp=DPSGD(2.0, 1.0), transform=[])
    less_sign = Defense("z=1, sign", dp=DPSGD(1.0, 1.0), transform=Sign())
    more_sign = Defense("z=2, sign", dp=DPSGD(2.0, 1.0), transform=Sign())
    wider = Defense("z=4, C=2", dp=DPSGD(4.0, 2.0), transform=[])
    assert set(nested([NONE, SIGN, less, more, less_sign, more_sign, wider])) == {
        *(("none", "sign"), ("z=1", "z=2"), ("z=1", "z=1, sign"), ("z=1", "z=2, sign")),
        ("z=2", "z=2, sign"),
    }


def test_more_rounds_that_read_clearly_less_than_fewer_give_a_warning() -> None:
    once = row(worst_asr=0.9, worst_ci=(0.85, 0.95))
    pooled = row(rounds=20, worst_asr=0.5, worst_ci=(0.45, 0.55))
    (warning,) = weak_pooling([once, pooled])
    assert "20 rounds of 'top-k 1 %' contain 1" in warning
    near = row(rounds=20, worst_asr=0.84, worst_ci=(0.79, 0.89))
    other = row(rounds=20, defense="sign", worst_ci=(0.1, 0.2))
    elsewhere = row(rounds=20, stage="trained", worst_ci=(0.1, 0.2))
    assert weak_pooling([once, near, other, elsewhere]) == []
    # Fewer rounds may read less, and other numbers of rounds are other conditions.
    assert weak_pooling([row(worst_ci=(0.1, 0.2)), row(rounds=5)]) == []
    low = row(defense="noise", worst_ci=(0.1, 0.2))
    high = row(defense="noise, sign", rounds=5, worst_ci=(0.8, 0.9))
    assert weak_attacks(ALL, [low, high]) == []
