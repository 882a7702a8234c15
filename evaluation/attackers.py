"""Which attacks a study runs, and what the report calls them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from gradguard.attacks import ADAPTIVE, BASELINES, PUBLISHED, REFERENCES
from gradguard.attacks.threat import Attack
from gradguard.evaluation.errors import unknown
from gradguard.evaluation.specs import AttackSpec

BLIND = "BestConstant"
"""The baseline that advantages are measured against: the best guess without looking."""


def attack_name(attack: Attack) -> str:
    """The attack's class, with the settings that are words: what tells its variants apart.

    >>> from gradguard.attacks import BASELINES
    >>> [attack_name(attack) for attack in BASELINES]
    ['RandomGuess', 'BestConstant']
    """
    settings: list[str] = []
    if is_dataclass(attack):
        for spec in fields(attack):
            value: Any = getattr(attack, spec.name)
            # Numbers are sizes, such as how many batches to simulate; those the report has.
            if isinstance(value, str):
                settings.append(value)
    name = type(attack).__name__
    return f"{name}({', '.join(settings)})" if settings else name


def select_attacks(spec: AttackSpec) -> dict[str, Attack]:
    """Attacks by name, the blind baselines first and always among them.

    ``"all"`` leaves out the slow references; they run where a study names them.

    Raises:
        UnusableInputError: ``spec.attackers`` lists a name that no attack has.
    """
    usual = {attack_name(a): a for a in (*BASELINES, *PUBLISHED, *ADAPTIVE)}
    if spec.attackers == "all":
        chosen = usual
    else:
        every = usual | {attack_name(a): a for a in REFERENCES}
        for name in spec.attackers:
            if not isinstance(name, str) or name not in every:
                raise unknown("attacker", str(name), every)
        blind = {attack_name(a) for a in BASELINES}
        chosen = {n: a for n, a in every.items() if n in blind or n in spec.attackers}
    return {name: _sized(attack, spec.simulated) for name, attack in chosen.items()}


def shaped(attacks: dict[str, Attack], input_shape: tuple[int, ...]) -> dict[str, Attack]:
    """The attacks, told the shape of an input where they would else take it from auxiliary data.

    The shape is public with the model: an attacker without data can feed it dummies.
    """
    return {
        name: _with(attack, "input_shape", input_shape)
        if getattr(attack, "input_shape", input_shape) is None
        else attack
        for name, attack in attacks.items()
    }


def _sized(attack: Attack, simulated: int | None) -> Attack:
    """The attack with the study's number of simulated batches, where it simulates any."""
    if simulated is None or not hasattr(attack, "simulated"):
        return attack
    return _with(attack, "simulated", simulated)


def _with(attack: Attack, setting: str, value: object) -> Attack:
    if not is_dataclass(attack):
        return attack
    changed: Attack = replace(attack, **{setting: value})
    return changed
