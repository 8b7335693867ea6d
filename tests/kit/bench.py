"""Command line of hack/bench: measures runtimes in turn, in one run, and prints medians and ratios.

In turn means: one life of a pod with the first runtime, one with the second, and again. The machine
is never quiet and never equally busy; taking turns makes its moods everybody's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from protos import api_pb2 as api
from tests.kit.configurations import NETWORKS
from tests.kit.floor import Floor, floor_under, legend
from tests.kit.floor_pull import pull_floor_ms
from tests.kit.images import make_sets
from tests.kit.measure import (
    BUSYBOX,
    LARGE,
    MANY_FILES,
    STEPS,
    Target,
    lives_at_once,
    one_life,
    pull,
    remove_image,
    with_many_pods,
)
from tests.kit.measure_node import measure_idle, measure_scale
from tests.kit.measure_pull import CASES, measure_case, note_answers
from tests.kit.registry import running_registry
from tests.kit.runtimes import end_in_order, running

#: What is measured when nothing is named. For pulls, ours in both forms of layers.
RUNTIMES: Final = ("podwright", "containerd")
PULLERS: Final = ("podwright", "podwright-tree", "containerd")

#: By name of the runtime and row of the table.
Samples = dict[str, dict[str, list[float]]]

#: Stands where a runtime has no such call, and where there is nothing to compare with.
NOTHING: Final = "\N{EN DASH}"


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(prog="hack/bench")
    parser.add_argument("runtimes", nargs="*")
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--pull-runs", type=int, default=3)
    parser.add_argument("--pull", action="store_true")
    parser.add_argument("--pods", type=int, default=16)
    parser.add_argument("--node", action="store_true")
    parser.add_argument("--scale", type=numbers, default=[100])
    parser.add_argument("--idle-seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    last = last_run(options.json)
    names = options.runtimes or (PULLERS if options.pull else RUNTIMES)
    sets = ["bench"] if options.pull_runs > 0 else []
    sets += ["pull"] if options.pull else []
    registry = make_sets(options.storage, ["first-pod", "critest", *sets])
    with (
        tempfile.TemporaryDirectory(prefix="podwright-bench-") as work,
        running_registry(registry, Path(work)) as port,
        contextlib.ExitStack() as daemons,
    ):
        targets = [make_target(text, port, daemons) for text in names]
        for target in targets:
            answer = target.runtime.Version(api.VersionRequest(), timeout=30)
            target.version = f"{answer.runtime_name} {answer.runtime_version}"
        floor = Target(name="floor", socket=Path("/none"))
        if options.pull:
            measure_pulls(targets, floor, registry, runs=options.pull_runs)
        else:
            runs, pull_runs = options.runs, options.pull_runs
            measure(targets, floor, registry, runs=runs, pull_runs=pull_runs, pods=options.pods)
        if options.node:
            measure_node(targets, scale=options.scale, idle_s=options.idle_seconds)
    print(table(targets, last, floor))
    if options.json is not None:
        options.json.write_text(json.dumps(document([*targets, floor]), indent=2) + "\n")
    return 0


def numbers(text: str) -> list[int]:
    """Whole numbers above 0 between commas, for an option."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def make_target(text: str, port: int, daemons: contextlib.ExitStack) -> Target:
    """A runtime by name, which is started, or by NAME=SOCKET, which must be running."""
    name, _, socket = text.partition("=")
    if socket:
        return Target(name=name, socket=Path(socket.removeprefix("unix://")))
    if name not in NETWORKS:
        raise SystemExit(f"{name}: not one of {sorted(NETWORKS)}, and no NAME=SOCKET either")
    try:
        return Target(name=name, socket=daemons.enter_context(running(name, port)).socket)
    except FileNotFoundError as error:
        raise SystemExit(f"{name}: {error}") from error


def measure(
    targets: list[Target], floor: Target, registry: Path, *, runs: int, pull_runs: int, pods: int
) -> None:
    """Take all samples."""
    for target in targets:
        tell(f"{target.name}: warming up")
        pull(target, BUSYBOX)
        one_life(target, "warm-up", note=False)
    with contextlib.ExitStack() as stack:
        ground = _ground(targets, floor, stack) if runs else None
        for number in range(runs):
            tell(f"life {number + 1} of {runs}")
            for target in targets:
                one_life(target, f"life-{number}")
            if ground is not None:
                ground.life(f"life-{number}")
    for number in range(3 if runs else 0):
        tell(f"four clients at once, {number + 1} of 3")
        for target in targets:
            lives_at_once(target, clients=4, pods=12, round_number=number)
    for target in targets if pods else []:
        tell(f"{target.name}: {pods} pods")
        with_many_pods(target, pods=pods)
    for number in range(pull_runs):
        for row, image in (
            ("pull, 245 MB, 15,000 files", LARGE),
            ("pull, 30,000 files", MANY_FILES),
        ):
            for target in targets:
                tell(f"{target.name}: {row}, {number + 1} of {pull_runs}")
                os.sync()
                target.timed(row, partial(pull, target, image))
                target.timed(f"remove after {row}", partial(remove_image, target, image))
            os.sync()
            floor.add(row, pull_floor_ms(registry, image))


def _ground(targets: list[Target], floor: Target, stack: contextlib.ExitStack) -> Floor | None:
    """What the steps' floors are measured with, after the first runtime that tells enough."""
    for target in targets:
        try:
            return stack.enter_context(floor_under(target, floor))
        except LookupError as error:
            print(f"{target.name}: no floor of its steps: {error}", file=sys.stderr)
    return None


def measure_node(targets: list[Target], *, scale: list[int], idle_s: int) -> None:
    """Take the samples of a node's load, one runtime after the other: the load would be shared."""
    for containers in scale:
        for target in targets:
            tell(f"{target.name}: {containers} containers")
            measure_scale(target, containers=containers)
    for target in targets if idle_s > 0 else []:
        tell(f"{target.name}: a node that is polled for {idle_s} s")
        measure_idle(target, seconds=idle_s)


def measure_pulls(targets: list[Target], floor: Target, registry: Path, *, runs: int) -> None:
    """Every case of a pull, each `runs` times for its time and as often to watch the daemon."""
    for target in targets:
        tell(f"{target.name}: warming up")
        pull(target, BUSYBOX)
    for case in CASES:
        answers_ms: dict[str, list[float]] = {}
        for number in range(2 * runs):
            watched = number % 2 == 1
            for target in targets:
                tell(f"{target.name}: {case.row}, {number + 1} of {2 * runs}")
                took_ms = measure_case(target, case, watched=watched)
                answers_ms.setdefault(target.name, []).extend(took_ms)
            if not watched and not case.before:
                os.sync()
                floor.add(case.row, pull_floor_ms(registry, *case.images))
        for target in targets:
            note_answers(target, case, answers_ms.get(target.name, ()))


def rows_of(targets: list[Target]) -> list[str]:
    """Rows in the order of the work, not of the alphabet."""
    seen = dict.fromkeys(row for target in targets for row in target.samples)
    first = [row for row in (*STEPS, "pod to running") if row in seen]
    return [*first, *(row for row in seen if row not in first)]


def table(targets: list[Target], last: Samples | None = None, floor: Target | None = None) -> str:
    """Medians side by side as Markdown; the ratio says how many times the first one's time.

    With a floor, one column for it and one for how many times of it the first one takes.

    With the samples of an earlier run, one column more for each runtime that was in it: how many
    times what it took then. The first runtime's is to be read beside the others', whose code did
    not change: what all have in common is the machine's mood.
    """
    head = ["median, ms unless said", *(f"{t.name} ({t.version})" for t in targets)]
    head += [f"{t.name} / {targets[0].name}" for t in targets[1:]]
    again = [t for t in targets if last and t.name in last]
    head += [f"{t.name} / last run" for t in again]
    ground = floor if floor is not None and floor.samples else None
    head += ["floor", f"{targets[0].name} / floor"] if ground else []
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows_of(targets):
        medians = [_median(target, row) for target in targets]
        cells = [row, *(_text(m) for m in medians)]
        cells += [_ratio(m, medians[0]) for m in medians[1:]]
        cells += [_ratio(_median(t, row), _middle((last or {})[t.name].get(row))) for t in again]
        if ground:
            cells += [_text(_median(ground, row)), _ratio(medians[0], _median(ground, row))]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if ground:
        lines += [legend(list(ground.samples)), ""]
    lines.append(machine())
    return "\n".join(lines)


def machine() -> str:
    """One line that says where the numbers come from."""
    cgroup = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"{os.cpu_count()} cores, Linux {kernel}, cgroup {cgroup}, "
        f"Python {platform.python_version()}"
    )


def document(targets: list[Target]) -> dict[str, object]:
    """All samples, for whoever wants more than medians."""
    return {
        "machine": machine(),
        "runtimes": [{"name": t.name, "version": t.version, "samples": t.samples} for t in targets],
    }


def last_run(path: Path | None) -> Samples | None:
    """The samples that an earlier run left in `path`, by runtime and row; None without such a file.

    Raises:
        SystemExit: it is there and is not what this program writes; it would be overwritten.
    """
    if path is None or not path.exists():
        return None
    try:
        return {
            kept["name"]: {row: [float(v) for v in values] for row, values in rows.items()}
            for kept in json.loads(path.read_text())["runtimes"]
            for rows in [kept["samples"]]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: not written by hack/bench --json: {error!r}") from error


def _median(target: Target, row: str) -> float | None:
    return _middle(target.samples.get(row))


def _middle(samples: list[float] | None) -> float | None:
    return statistics.median(samples) if samples else None


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value and base else NOTHING


def _text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def tell(text: str) -> None:
    """What is being done now, on one line of a terminal."""
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
