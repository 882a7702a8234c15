"""What a curious server can infer about labels from the messages of a client."""

from gradguard.attacks.baselines import BestConstant as BestConstant
from gradguard.attacks.baselines import RandomGuess as RandomGuess
from gradguard.attacks.bias_count import BiasCount as BiasCount
from gradguard.attacks.learned import LearnedRegression as LearnedRegression
from gradguard.attacks.llg import LLG as LLG
from gradguard.attacks.llg_plus import LLGPlus as LLGPlus
from gradguard.attacks.llg_star import LLGStar as LLGStar
from gradguard.attacks.negative_columns import NegativeColumns as NegativeColumns
from gradguard.attacks.template import TemplateRegression as TemplateRegression
from gradguard.attacks.threat import Attack as Attack
from gradguard.attacks.threat import FittedAttack as FittedAttack
from gradguard.attacks.threat import Knowledge as Knowledge
from gradguard.attacks.threat import NotApplicableError as NotApplicableError
from gradguard.attacks.threat import Observation as Observation

BASELINES: tuple[Attack, ...] = (RandomGuess(), BestConstant())
"""Guesses that do not look at the message."""

PUBLISHED: tuple[Attack, ...] = (
    LLG(),
    LLGStar("zeros"),
    LLGStar("ones"),
    LLGStar("random"),
    LLGPlus(),
    NegativeColumns(),
    BiasCount(),
)
"""Attacks that do not adapt to the defence: a low score of theirs says nothing about it."""

ADAPTIVE: tuple[Attack, ...] = (
    TemplateRegression("bias"),
    TemplateRegression("head"),
    TemplateRegression("body"),
    TemplateRegression("all"),
    LearnedRegression(),
)
"""Attacks that know the defence and rehearse against it."""
