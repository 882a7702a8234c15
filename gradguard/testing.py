"""What the property tests of a transform need; for users' own transforms as well.

``check_transform(MyTransform(0.5))`` runs every law that gradguard's own transforms obey.
``grads()`` and ``transforms()`` are hypothesis strategies and need ``gradguard[test]``.
"""

from gradguard.laws.suite import LAWS as LAWS
from gradguard.laws.suite import LawBrokenError as LawBrokenError
from gradguard.laws.suite import check_transform as check_transform
from gradguard.laws.suite import example_parameters as example_parameters
from gradguard.strategies import grads as grads
from gradguard.strategies import transforms as transforms
from gradguard.unbiasedness import check_unbiased as check_unbiased
