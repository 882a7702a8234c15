"""gradguard: defend the gradients a client sends, and attack that very defence first."""

from gradguard.casting import Cast as Cast
from gradguard.client import Client as Client
from gradguard.clipping import ClipByGlobalNorm as ClipByGlobalNorm
from gradguard.clipping import ClipByValue as ClipByValue
from gradguard.core import Chain as Chain
from gradguard.core import Grads as Grads
from gradguard.core import GradTransform as GradTransform
from gradguard.core import Identity as Identity
from gradguard.core import State as State
from gradguard.core import chain as chain
from gradguard.defense import Attached as Attached
from gradguard.defense import Defense as Defense
from gradguard.error_feedback import ErrorFeedback as ErrorFeedback
from gradguard.finite import NonFiniteGradientError as NonFiniteGradientError
from gradguard.noise import AddGaussian as AddGaussian
from gradguard.noise import AddLaplace as AddLaplace
from gradguard.optimizer import GuardedOptimizer as GuardedOptimizer
from gradguard.optimizer import guard as guard
from gradguard.quantization import Quantize as Quantize
from gradguard.routing import NamedParameters as NamedParameters
from gradguard.routing import Only as Only
from gradguard.routing import Withhold as Withhold
from gradguard.sign import Sign as Sign
from gradguard.sparsification import KeepRandomK as KeepRandomK
from gradguard.sparsification import KeepTopK as KeepTopK
from gradguard.ternary import Ternary as Ternary
