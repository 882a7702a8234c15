"""Knowledge as a dial: what is read by attackers who lack the model, data, or the defence's code.

Every attack names the fields of :class:`~gradguard.attacks.threat.Knowledge` that it needs. An
attacker who has less can still run the attacks that need less, and runs the best of those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gradguard.attacks import BASELINES
from gradguard.evaluation.attackers import attack_name

LEVELS: dict[str, frozenset[str]] = {
    "gradient": frozenset(),
    "+ model": frozenset({"model"}),
    "+ auxiliary data": frozenset({"model", "auxiliary"}),
    "+ defence": frozenset({"model", "auxiliary", "client"}),
}
"""What an attacker has beside the message, by name of the level; each has all of the one before.

An attacker who knows the defence can run the client's code on batches of its own.
"""

TOLD = frozenset({"num_classes", "batch_size", "composition", "local_steps", "learning_rate"})
"""What every server is told, whatever else it knows."""

TOP = list(LEVELS)[-1]


def can_run(needs: Collection[str], level: str) -> bool:
    """Whether an attacker of this level has all that an attack needs; one of the highest has.

    >>> [level for level in LEVELS if can_run({"model", "num_classes"}, level)]
    ['+ model', '+ auxiliary data', '+ defence']
    """
    return level == TOP or set(needs) <= LEVELS[level] | TOLD


def attacks_by_level(needs: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """The attacks that each level can run, in the order given.

    Guarantees:

    - a level can run all that the one before can;
    - the highest level can run every attack;
    - blind baselines belong to every level: whoever sees nothing can guess.

    Args:
        needs: The fields of ``Knowledge`` that each attack needs, by the attack's name.

    >>> attacks_by_level({"BestConstant": {"num_classes"}, "LLG": set(), "LLGPlus": {"auxiliary"}})[
    ...     "gradient"
    ... ]
    ['BestConstant', 'LLG']
    """
    blind = {attack_name(attack) for attack in BASELINES}
    return {
        level: [name for name, used in needs.items() if name in blind or can_run(used, level)]
        for level in LEVELS
    }
