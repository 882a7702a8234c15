"""Data and scripts inside one page that no name in a study can break out of."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

# U+2028 and U+2029 end a line in scripts of older browsers; json.dumps escapes all beyond ASCII.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def json_for_script(value: Any) -> str:
    """JSON that is safe between ``<script>`` tags: neither tags, comments nor entities.

    Guarantees:

    - it reads back as the same value;
    - it is ASCII and has none of ``<``, ``>`` and ``&``.

    >>> json_for_script({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'

    Raises:
        ValueError: A number is not finite, which JSON does not have.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: these very scripts, and nothing from any network.

    Styles may be inline, as the charts set them; images only from the page itself.

    Args:
        scripts: What stands between the ``<script>`` tags, character by character.
    """
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
