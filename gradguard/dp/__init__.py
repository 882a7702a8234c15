"""DP-SGD through Opacus, with an accounting that cannot get lost."""

from __future__ import annotations

from gradguard.dp.client import PrivateClient
from gradguard.dp.client_level import ClientDP, PrivateUpdateGuard
from gradguard.dp.errors import LostAccountingError, UnclippedGradientError
from gradguard.dp.ledger import PrivacyBudgetExhausted, PrivacyLedger
from gradguard.dp.private_training import PrivateTraining, make_private
from gradguard.dpsgd import DPSGD

__all__ = [
    "DPSGD",
    "ClientDP",
    "LostAccountingError",
    "PrivacyBudgetExhausted",
    "PrivacyLedger",
    "PrivateClient",
    "PrivateTraining",
    "PrivateUpdateGuard",
    "UnclippedGradientError",
    "make_private",
]
