"""The page's last section: how the numbers were made, and enough to make them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gradguard.evaluation.report import Report
from gradguard.evaluation.views.text import escape

EXPLAINED = (
    "Labels read: the share of a batch's labels that the best attack names, counted as a "
    "multiset. Blind: the best guess without looking at the message. Advantage: how much of "
    "what a blind guess leaves open the attack gets. A row leaks where the whole interval of "
    "the advantage is above 5 %. It may leak where some of it is, or an attack that was "
    "not chosen beforehand. A row that does not leak was not shown to by these attacks, "
    "which is no proof that it does not."
)
_WORDS = {
    "started": "started",
    "wall_seconds": "seconds taken",
    "command": "command",
    "seed": "seed",
    "versions": "versions",
    "hardware": "hardware",
    "threads": "threads",
    "data": "data",
    "models_attacked": "models attacked",
    "batches_per_row": "batches per row",
    "messages_encoded": "messages encoded",
    "attacked_model_accuracy": "accuracy of the attacked models",
}
_ELSEWHERE = ("method", "warnings", "certificates")


def method(report: Report) -> str:
    """Method, provenance as a list, and both study and provenance whole."""
    facts = report.provenance
    first = [name for name in _WORDS if name in facts]
    rest = [name for name in facts if name not in (*_WORDS, *_ELSEWHERE)]
    items = "".join(
        f"<dt>{escape(_WORDS.get(name, name.replace('_', ' ')))}</dt>"
        f"<dd>{escape(_shown(facts[name]))}</dd>"
        for name in (*first, *rest)
    )
    everything = json.dumps(
        {"provenance": facts, "study": report.study}, indent=2, ensure_ascii=False
    )
    return (
        f"<p>{escape(EXPLAINED)}</p>\n<p>{escape(facts.get('method', ''))}</p>\n"
        f'<dl class="facts">{items}</dl>\n<details><summary>Study and provenance in full'
        f"</summary><pre>{escape(everything)}</pre></details>"
    )


def _shown(value: Any) -> str:
    """A fact in one line.

    >>> _shown({"name": "digits", "input_shape": [1, 8, 8], "share": 0.12345})
    'name digits, input shape 1 × 8 × 8, share 0.1235'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        whole = all(isinstance(entry, int) for entry in value)
        return (" × " if whole else ", ").join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
