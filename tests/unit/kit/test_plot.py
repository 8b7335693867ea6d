"""What is made of the samples of a node that fills: figures, tables, the picture, the file."""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
import msgspec
import pytest

from tests.kit import plot
from tests.kit.grow import Growth, Samples, Stage
from tests.kit.plot import Record, failures, late, median, picture, report, rounded


def stage(pods: int, start_ms: float, *, failed: int = 0) -> Stage:
    holding = Samples(
        {"ListPodSandbox": [0.4, 0.5, 0.6], "ListContainers": [0.7]},
        {"stats": failed} if failed else {},
    )
    return Stage(
        pods=pods,
        filling=Samples({"Version": [1.0] * 98 + [9.0, 30.0]}),
        per_pod_ms=70.0,
        holding=holding,
        held_s=30.0,
        cpu_s={"daemon": 0.5, "helpers": 0.25},
        probing=Samples({"pod to running": [start_ms, start_ms + 2, start_ms + 100]}),
        life_cpu_ms=25.0,
        floor=Samples({"pod to running": [30.0]} if pods == 10 else {}),
        pss_mib={"daemon": 60.0, "conmon": pods * 0.5, "catatonit": pods * 0.1},
        processes={"daemon": 1, "conmon": pods, "catatonit": pods},
    )


def record() -> Record:
    ours = Growth("ours", "ours 1", 55.0, [stage(10, 50.0), stage(500, 60.0, failed=2)])
    theirs = Growth("theirs", "theirs 2", 48.0, [stage(10, 140.0), stage(500, 400.0)])
    return Record("2 cores", "2026-01-01", [ours, theirs])


def row(text: str, name: str) -> list[str]:
    [line, *_] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_figures_by_number_of_pods() -> None:
    text = report(record())
    assert row(text, "pod to running, one at a time, ms") == ["52.0", "62.0"]
    assert row(text, "Version meanwhile, 99 %") == ["9.0", "9.0"]
    assert row(text, "processor time of the daemon, s per minute") == ["1.0", "1.0"]
    assert row(text, "and of its helpers") == ["0.50", "0.50"]
    assert row(text, "memory of conmon, MiB each") == ["0.50", "0.50"]
    assert row(text, "memory of catatonit, MiB each") == ["0.10", "0.10"]
    assert row(text, "failed calls") == ["0.00", "2.0"]
    assert row(text, "its floor, the kernel and the programs alone")[0] == "30.0"
    assert row(text, "StopPodSandbox") == ["–", "–"]  # noqa: RUF001
    assert text.splitlines()[-1] == "2 cores, 2026-01-01"


def test_a_median_of_nothing_is_nothing() -> None:
    assert median(Samples(), "Version") is None
    assert late(Samples(), "Version") is None
    assert failures(stage(1, 1.0, failed=3)) == 3


def test_the_picture_has_both_runtimes_in_all_panels() -> None:
    svg = picture(record())
    assert svg.count("<title>ours</title>") == svg.count("<title>theirs</title>") == 4
    assert "ours 1, theirs 2" in svg


def test_what_was_kept_is_drawn_again_without_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> Record:
        raise AssertionError("measured")

    kept = rounded(record())
    (tmp_path / "scale.json").write_bytes(msgspec.json.encode(kept))
    monkeypatch.setattr(plot, "measure", never)
    arguments = ["plot", str(tmp_path / "scale.svg"), "--storage", "/none", "--redraw"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert plot.main() == 0
    assert (tmp_path / "scale.svg").read_text() == picture(kept)
    assert "62.0" in capsys.readouterr().out


def test_a_failed_call_is_counted_and_has_no_time() -> None:
    class Refusal(grpc.RpcError):
        def details(self) -> str:
            return "no"

    def refuse() -> None:
        raise Refusal

    samples = Samples()
    assert samples.timed("Stop", refuse) is None
    assert samples.timed("Stop", lambda: 7) == 7
    assert samples.failed == {"Stop": 1}
    assert len(samples.took_ms["Stop"]) == 1
