"""What a curious server can infer about labels from the messages of a client."""

from gradguard.attacks.baselines import BestConstant as BestConstant
from gradguard.attacks.baselines import RandomGuess as RandomGuess
from gradguard.attacks.bias_count import BiasCount as BiasCount
from gradguard.attacks.dlg import DLG as DLG
from gradguard.attacks.ebi import EBI as EBI
from gradguard.attacks.ensemble import Ensemble as Ensemble
from gradguard.attacks.gdbr import GDBR as GDBR
from gradguard.attacks.gradinversion_labels import GradInversionLabels as GradInversionLabels
from gradguard.attacks.idlg import IDLG as IDLG
from gradguard.attacks.ilrg import ILRG as ILRG
from gradguard.attacks.learned import LearnedRegression as LearnedRegression
from gradguard.attacks.llbg import LLBG as LLBG
from gradguard.attacks.llg import LLG as LLG
from gradguard.attacks.llg_plus import LLGPlus as LLGPlus
from gradguard.attacks.llg_star import LLGStar as LLGStar
from gradguard.attacks.negative_columns import NegativeColumns as NegativeColumns
from gradguard.attacks.rlg import RLG as RLG
from gradguard.attacks.rlu import RLU as RLU
from gradguard.attacks.soft_labels import SoftLabels as SoftLabels
from gradguard.attacks.template import TemplateRegression as TemplateRegression
from gradguard.attacks.threat import Attack as Attack
from gradguard.attacks.threat import FittedAttack as FittedAttack
from gradguard.attacks.threat import Knowledge as Knowledge
from gradguard.attacks.threat import NotApplicableError as NotApplicableError
from gradguard.attacks.threat import Observation as Observation
from gradguard.attacks.zlg import ZLG as ZLG

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
    IDLG(),
    GradInversionLabels(),
    EBI(),
    LLBG(),
    ILRG(),
    RLG(),
    ZLG("noise"),
    ZLG("auxiliary"),
    RLU(),
    GDBR(),
    SoftLabels(),
)
"""Attacks that do not adapt to the defence: a low score of theirs says nothing about it."""

ADAPTIVE: tuple[Attack, ...] = (
    TemplateRegression("bias"),
    TemplateRegression("head"),
    TemplateRegression("body"),
    TemplateRegression("all"),
    LearnedRegression(),
    Ensemble(),
)
"""Attacks that know the defence and rehearse against it."""

REFERENCES: tuple[Attack, ...] = (DLG(),)
"""Slow attacks for comparison: run when a study names them, and not under ``"all"``."""
