"""Which attacks a study runs."""

from __future__ import annotations

import pytest

from gradguard.attacks import ADAPTIVE, BASELINES, DLG, PUBLISHED, REFERENCES
from gradguard.evaluation.attackers import attack_name, select_attacks
from gradguard.evaluation.errors import UnusableInputError
from gradguard.evaluation.specs import AttackSpec


def test_all_attackers_are_all_but_the_slow_references() -> None:
    chosen = select_attacks(AttackSpec(attackers="all"))
    assert set(chosen) == {attack_name(a) for a in (*BASELINES, *PUBLISHED, *ADAPTIVE)}
    assert not {attack_name(a) for a in REFERENCES} & set(chosen)


def test_references_run_where_a_study_names_them() -> None:
    chosen = select_attacks(AttackSpec(attackers=("LLG", "DLG")))
    assert chosen["DLG"] == DLG()
    assert set(chosen) == {attack_name(a) for a in BASELINES} | {"LLG", "DLG"}


def test_unknown_attacker_is_refused_and_a_near_reference_is_named() -> None:
    with pytest.raises(UnusableInputError, match="DLG"):
        select_attacks(AttackSpec(attackers=("DLGG",)))


def test_names_tell_all_attacks_apart() -> None:
    every = (*BASELINES, *PUBLISHED, *ADAPTIVE, *REFERENCES)
    assert len({attack_name(a) for a in every}) == len(every)
