"""The command line of hack/vm; its help is the first comment of that script."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.kit.vm import recipe, suites
from tests.kit.vm.builder import Builder, say
from tests.kit.vm.debs import CannotBuild
from tests.kit.vm.disks import SETUP, packages_disk, tree_disk
from tests.kit.vm.machine import Machine, MachineFailed, TimeIsUp

TOP: Final = Path(__file__).parents[3]
#: Of this program itself; what a command inside ends with is passed on.
TIME_IS_UP, NO_MACHINE, CANNOT_BUILD = 124, 125, 126
#: How much slower than this machine the kit of the tests should expect everything to be.
SLOWNESS: Final = "10"


def main(words: Sequence[str]) -> int:
    """Do what the command line says; the exit status."""
    ours, theirs = _split(words)
    options = _parser().parse_args(ours)
    try:
        return int(options.act(options, theirs))
    except TimeIsUp:
        print(f"error: the command took longer than {options.limit} s", file=sys.stderr)
        return TIME_IS_UP
    except MachineFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_MACHINE
    except CannotBuild as error:
        print(f"error: the machine cannot be made: {error}", file=sys.stderr)
        return CANNOT_BUILD


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return list(words), []
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/vm", add_help=False)
    verbs = parser.add_subparsers(required=True)
    acts = {"build": _build, "run": _run, "test": _test, "critest": _critest}
    for name, act in acts.items():
        verb = verbs.add_parser(name, add_help=False)
        verb.set_defaults(act=act)
        verb.add_argument("--kernel", choices=recipe.KERNELS, default=next(iter(recipe.KERNELS)))
        verb.add_argument("--limit", type=float, default=1800.0)
        verb.add_argument("--cache", type=Path, required=True)
        if name == "run":
            verb.add_argument("--fetch", metavar="INSIDE:OUTSIDE", action="append", default=[])
        if name in ("test", "critest"):
            verb.add_argument("--driver", choices=("cgroupfs", "systemd"), default="systemd")
        if name == "test":
            verb.add_argument("--all", action="store_true")
            verb.add_argument("--suite", default="")
        if name == "critest":
            verb.add_argument("--handler", choices=("crun", "runc"), default="crun")
            verb.add_argument("--focus", default="")
    return parser


def _build(options: argparse.Namespace, _: Sequence[str]) -> int:
    home = options.cache / "vm"
    disks = (packages_disk(TOP, options.cache, home), tree_disk(TOP, home))
    boot, _state = Builder(home).boot(options.kernel, disks)
    print(boot.folder)
    return 0


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if not argv:
        raise SystemExit("hack/vm run: no command; put it after --")
    fetched = [pair.split(":", 1) for pair in options.fetch]
    return run_inside(
        argv,
        cache=options.cache,
        kernel=options.kernel,
        limit_s=options.limit,
        fetch={inside: Path(outside) for inside, outside in fetched},
    )


def _test(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Suites of ours, or one of what the caller names; the table on standard output."""
    if argv:
        chosen = [suites.Suite("as asked", options.driver, tuple(argv), options.limit)]
    else:
        chosen = suites.every() if options.all else suites.short()
        chosen = [each for each in chosen if options.suite in f"{each.name}, {each.driver}"]
    return _run_suites(chosen, options, "vm-all" if options.all else "vm-test")


def _critest(options: argparse.Namespace, argv: Sequence[str]) -> int:
    words = ["--handler", options.handler, *argv]
    words += ["--focus", options.focus] if options.focus else []
    name = f"critest, {options.handler}"
    suite = suites.Suite(name, options.driver, tuple(words), options.limit, critest=True)
    return _run_suites([suite], options, "vm-critest")


def _run_suites(chosen: Sequence[suites.Suite], options: argparse.Namespace, report: str) -> int:
    outcomes: list[suites.Outcome] = []
    for suite in chosen:
        say(f"{suite.name}, {suite.driver}, Linux {options.kernel}")
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="podwright-vm-") as name:
            try:
                status = run_inside(
                    suite.command,
                    cache=options.cache,
                    kernel=options.kernel,
                    limit_s=suite.limit_s,
                    fetch={suites.REPORTS: Path(name)},
                    env={"PODWRIGHT_TEST_DRIVER": suite.driver},
                )
            except TimeIsUp:
                status = TIME_IS_UP
            took_s = time.monotonic() - started_s
            outcomes.append(suites.outcome(suite, options.kernel, Path(name), status, took_s))
        suites.keep(outcomes, options.cache / f"{report}.json")
        print(suites.table(outcomes[-1:]), flush=True)
    print(f"\n{suites.table(outcomes)}\n(kept in {options.cache / f'{report}.json'})")
    return 1 if any(each.failures for each in outcomes) else 0


def run_inside(
    argv: Sequence[str],
    *,
    cache: Path,
    kernel: str,
    limit_s: float,
    fetch: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a command in the tree in a fresh machine; its exit status.

    Args:
        argv: the command; its output goes to standard output.
        cache: the directory of all of hack's caches.
        kernel: of `recipe.KERNELS`.
        limit_s: how long the command may take.
        fetch: files or directories inside -> the directory outside that gets them.
        env: variables of the command.

    Raises:
        TimeIsUp, MachineFailed: see `Machine`.
    """
    home = cache / "vm"
    disks = (packages_disk(TOP, cache, home), tree_disk(TOP, home))
    boot, state = Builder(home).boot(kernel, disks)
    started_s = time.monotonic()
    with Machine.restored(boot, home / "scratch", state) as machine:
        said = bytearray()
        places = {"TOP": str(TOP), "CACHE": str(cache), "NOW": f"{time.time():.3f}"}
        if machine.run(["sh", "-c", SETUP], said.extend, env=places):
            raise MachineFailed(f"the disks cannot be mounted: {said.decode(errors='replace')}")
        say(f"the machine is there ({time.monotonic() - started_s:.1f} s)")
        variables = {**_environment(), **(env or {})}
        status = machine.run(argv, _show, env=variables, cwd=str(TOP), limit_s=limit_s)
        for inside, target in (fetch or {}).items():
            _fetch(machine, inside, target)
    return status


def _environment() -> dict[str, str]:
    inside = {
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PODWRIGHT_TEST_SLOWNESS": SLOWNESS,
        "TERM": "dumb",
    }
    passed_on = ("CI", "PYTEST_ADDOPTS", "PODWRIGHT_TEST_DRIVER")
    return {**inside, **{name: os.environ[name] for name in passed_on if name in os.environ}}


def _fetch(machine: Machine, inside: str, outside: Path) -> None:
    """Bring a file or a directory out; one that is not there is left out."""
    archive = bytearray()
    base, _, name = inside.rstrip("/").rpartition("/")
    script = 'tar -C "$1" -cf - "$2" 2>/dev/null'
    machine.run(["sh", "-c", script, "sh", base or "/", name], archive.extend)
    outside.mkdir(parents=True, exist_ok=True)
    if archive:
        subprocess.run(["tar", "-C", outside, "-xf", "-"], input=bytes(archive), check=True)
    else:
        print(f"note: {inside} is not there", file=sys.stderr)


def _show(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
