"""What server and client tell each other beside arrays: which reply belongs to which instruction.

A strategy that decodes gives every instruction a ticket, and the client's reply repeats its nonce.
Without it a reply of an old round would be added to a model that it was not made from.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord

RECORD = "gradguard"
"""The name of the ConfigRecord, in instructions and in replies."""

FORMAT = 1


@dataclass(frozen=True)
class Ticket:
    """Goes out with an instruction.

    Args:
        nonce: 32 hexadecimal digits, never used twice.
        accepted: How many replies of this node the server has used so far, which the node compares
            with its own memory.
    """

    nonce: str
    accepted: int

    def to_record(self) -> ConfigRecord:
        """As Flower sends it."""
        return ConfigRecord({"format": FORMAT, "nonce": self.nonce, "accepted": self.accepted})


def new_ticket(accepted: int) -> Ticket:
    """A ticket with a nonce from the operating system."""
    return Ticket(secrets.token_hex(16), accepted)


def ticket_from(record: Mapping[str, Any]) -> Ticket:
    """The ticket in an instruction.

    Raises:
        ValueError: It is none of this version.
    """
    match dict(record):
        case {"format": 1, "nonce": str(nonce), "accepted": int(accepted)} if accepted >= 0:
            return Ticket(nonce, accepted)
    raise ValueError(
        f"the server's {RECORD!r} record is not of format {FORMAT}; use the same version of "
        "gradguard on server and clients"
    )


@dataclass(frozen=True)
class Tag:
    """Comes back with a reply.

    Args:
        nonce: Of the ticket; empty where the server gave none.
        wire: Whether the arrays are gradguard's bytes.
        unit: What epsilon protects, ``"client"`` or ``"example"``; empty where there is none.
        accountant: How epsilon was computed; empty where there is none.
    """

    nonce: str
    wire: bool
    unit: str = ""
    accountant: str = ""

    def to_record(self) -> ConfigRecord:
        """As Flower sends it."""
        return ConfigRecord(
            {
                "format": FORMAT,
                "nonce": self.nonce,
                "wire": self.wire,
                "unit": self.unit,
                "adjacency": "add-remove" if self.unit else "",
                "accountant": self.accountant,
            }
        )


def tag_from(record: Mapping[str, Any]) -> Tag:
    """The tag in a reply.

    Raises:
        ValueError: It is none of this version.
    """
    match dict(record):
        case {
            "format": 1,
            "nonce": str(nonce),
            "wire": bool(wire),
            "unit": ("" | "client" | "example") as unit,
            "accountant": str(accountant),
        }:
            return Tag(nonce, wire, str(unit), accountant)
    raise ValueError(f"its {RECORD!r} record is not of format {FORMAT}")
