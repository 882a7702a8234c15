"""Run the app in some of its modes on Flower's simulation engine, and print what each has cost.

::

    python examples/flower/run.py top-k dp-sgd
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from engine import superlink

APP = Path(__file__).parent
MODES = ("plain", "top-k", "top-k-dense", "dp-sgd", "client-dp")


def main(modes: Sequence[str]) -> int:
    """Print the table of every mode."""
    if unknown := set(modes) - set(MODES):
        print(f"unknown mode {min(unknown)!r}; there are {', '.join(MODES)}", file=sys.stderr)
        return 2
    if find_spec("flwr") is None:
        print("this needs Flower: pip install 'gradguard[flower]'", file=sys.stderr)
        return 2
    print("Starting Flower with four clients; each mode takes about half a minute.", flush=True)
    with superlink("--simulation") as link:
        for mode in modes or MODES:
            output = link.run(APP, clients=4, mode=mode)
            if not (table := table_in(output, mode)):
                print(output, file=sys.stderr)
                return 1
            print(f"\n{table}", end="", flush=True)
    return 0


def table_in(output: str, mode: str) -> str:
    """The table of a mode in what ``flwr run`` has printed; empty if there is none."""
    found = re.search(rf"^{mode} .*\n(?: .*\n)+", output, re.MULTILINE)
    return "" if found is None else found.group()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is ended before this is
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
