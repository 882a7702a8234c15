from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("flwr")

from tests.integrations.flower.exchange import in_a_run


@pytest.fixture(autouse=True)
def _run() -> Iterator[None]:
    with in_a_run():
        yield
