"""critest, whole, with each OCI runtime: nothing fails, nothing is left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.conformance
@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_critest_passes(handler: str, tmp_path: Path) -> None:
    run_critest("--handler", handler, "--reports", tmp_path)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.conformance
@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_critest_streams_over_websocket_too(handler: str, tmp_path: Path) -> None:
    run_critest("--handler", handler, "--websocket", "--focus", "Streaming", "--reports", tmp_path)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.conformance
def test_the_kit_itself_is_sound(tmp_path: Path) -> None:
    """Images, registry, network and skip list of the kit, judged by a runtime that is not ours."""
    run_critest("--against", "containerd", "--reports", tmp_path)


def run_critest(*arguments: str | Path) -> None:
    run = subprocess.run(
        [TOP / "hack/critest", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    # critest's own account of each failure is long and exactly what one needs then.
    assert run.returncode == 0, f"{run.stderr[-20_000:]}\n{run.stdout}"
    assert " 0 failed" in run.stdout
    print(run.stdout)
