"""gradguard.evaluation: wrap a client, attack it, and report what still leaks and what it cost."""

from gradguard.evaluation.data import Data as Data
from gradguard.evaluation.data import from_dataset as from_dataset
from gradguard.evaluation.data import load_digits as load_digits
from gradguard.evaluation.data import load_npz as load_npz
from gradguard.evaluation.errors import UnusableInputError as UnusableInputError
from gradguard.evaluation.evaluate import InterruptedStudyError as InterruptedStudyError
from gradguard.evaluation.evaluate import StoppedStudyError as StoppedStudyError
from gradguard.evaluation.evaluate import evaluate as evaluate
from gradguard.evaluation.report import AttackScore as AttackScore
from gradguard.evaluation.report import Failure as Failure
from gradguard.evaluation.report import Report as Report
from gradguard.evaluation.report import Row as Row
from gradguard.evaluation.report import read_report as read_report
from gradguard.evaluation.specs import AttackSpec as AttackSpec
from gradguard.evaluation.specs import DataSpec as DataSpec
from gradguard.evaluation.specs import ModelSpec as ModelSpec
from gradguard.evaluation.specs import TrainingSpec as TrainingSpec
from gradguard.evaluation.study import Study as Study
