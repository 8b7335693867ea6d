"""What the kit promises of the programs that measure."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import signal, sys
from tests.kit.runtimes import end_in_order
end_in_order()
try:
    print("ready", flush=True)
    signal.pause()
finally:
    print("taken back", flush=True)
"""


def test_a_terminated_measurement_takes_back_what_it_has_made() -> None:
    top = Path(__file__).parents[3]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=top, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    program.terminate()
    rest, _ = program.communicate()
    assert rest == "taken back\n"
    assert program.returncode == 128 + signal.SIGTERM
