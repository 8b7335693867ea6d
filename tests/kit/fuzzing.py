"""How long the fuzz tests look: a little in every run, the same examples each time, or as asked.

    PODWRIGHT_FUZZ_EXAMPLES=100000 .venv/bin/python -m pytest tests/fuzz -k tar

With the variable set, examples differ from run to run, so that a long search finds what is new; a
failure prints what reproduces it.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

from sandbox.host.errors import PodwrightError

VARIABLE: Final = "PODWRIGHT_FUZZ_EXAMPLES"


def fuzzed(examples: int = 200) -> settings:
    """The decorator of a fuzz test; `examples` is what every run tries."""
    asked = os.environ.get(VARIABLE, "")
    return settings(
        max_examples=int(asked) if asked else examples,
        derandomize=not asked,
        deadline=None,  # time is the machine's; the parsers' own limits bound the work
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
        print_blob=True,
    )


def assert_tellable(error: PodwrightError) -> None:
    """An error's words fit into a status, a log line and an event, whatever they quote."""
    text = str(error)
    assert text.isprintable(), f"control characters in {text!a}"
    assert len(text) < 1500, f"{len(text)} characters: {text[:200]!a}"
    text.encode()  # a lone surrogate would fail the answer in the place of the error
