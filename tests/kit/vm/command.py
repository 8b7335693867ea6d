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

from tests.kit.vm import outcomes, recipe, suites
from tests.kit.vm.builder import Builder, say
from tests.kit.vm.debs import CannotBuild
from tests.kit.vm.disks import SETUP, packages_disk, tree_disk, tree_mark
from tests.kit.vm.machine import Machine, MachineFailed, TimeIsUp
from tests.kit.vm.selinux import SelinuxBuilder, SelinuxMachine

TOP: Final = Path(__file__).parents[3]
NEWEST: Final = next(iter(recipe.KERNELS))
#: Name as on the command line -> who makes such a machine, and what it is.
APPARMOR: Final = "apparmor"
KINDS: Final[Mapping[str, tuple[type[Builder], type[Machine]]]] = {
    APPARMOR: (Builder, Machine),
    "selinux": (SelinuxBuilder, SelinuxMachine),
}
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
        verb.add_argument("--kernel", choices=recipe.KERNELS)
        verb.add_argument("--lsm", choices=KINDS, default=APPARMOR)
        verb.add_argument("--limit", type=float, default=1800.0)
        verb.add_argument("--cache", type=Path, required=True)
        if name == "run":
            verb.add_argument("--fetch", metavar="INSIDE:OUTSIDE", action="append", default=[])
        if name in ("test", "critest"):
            verb.add_argument("--driver", choices=("cgroupfs", "systemd"), default="systemd")
        if name == "test":
            verb.add_argument("--all", action="store_true")
            verb.add_argument("--resume", action="store_true")
            verb.add_argument("--suite", default="")
        if name == "critest":
            verb.add_argument("--handler", choices=("crun", "runc"), default="crun")
            verb.add_argument("--focus", default="")
    return parser


def _build(options: argparse.Namespace, _: Sequence[str]) -> int:
    home = options.cache / "vm"
    disks = (packages_disk(TOP, options.cache, home), tree_disk(TOP, home))
    builder, _kind = KINDS[options.lsm]
    boot, _state = builder(home).boot(options.kernel or NEWEST, disks)
    print(boot.folder)
    return 0


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if not argv:
        raise SystemExit("hack/vm run: no command; put it after --")
    fetched = [pair.split(":", 1) for pair in options.fetch]
    return run_inside(
        argv,
        cache=options.cache,
        kernel=options.kernel or NEWEST,
        lsm=options.lsm,
        limit_s=options.limit,
        fetch={inside: Path(outside) for inside, outside in fetched},
    )


def _test(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Suites of ours, or one of what the caller names; the table on standard output."""
    kernels = [options.kernel or NEWEST]
    if argv:
        name = " ".join(argv) if options.lsm == APPARMOR else f"{' '.join(argv)} ({options.lsm})"
        asked = suites.Suite(name, options.driver, tuple(argv), options.limit)
        return _run_suites([(asked, kernels[0])], options)
    if options.all and not options.kernel and options.lsm == APPARMOR:
        kernels = list(recipe.KERNELS)
    chosen = [
        (suite, kernel)
        for kernel in kernels
        for suite in _suites(options, kernel)
        if options.suite in suite.title
    ]
    if not chosen:
        raise SystemExit(f"hack/vm test: no suite has {options.suite!r} in its name or driver")
    return _run_suites(chosen, options)


def _suites(options: argparse.Namespace, kernel: str) -> list[suites.Suite]:
    if options.lsm != APPARMOR:
        return suites.under_selinux()
    return suites.every(kernel) if options.all else suites.short()


def _critest(options: argparse.Namespace, argv: Sequence[str]) -> int:
    words = ["--handler", options.handler, *argv]
    words += ["--focus", options.focus] if options.focus else []
    name = ": ".join(filter(None, (f"critest, {options.handler}", options.focus)))
    suite = suites.Suite(name, options.driver, tuple(words), options.limit, critest=True)
    return _run_suites([(suite, options.kernel or NEWEST)], options)


def _run_suites(chosen: Sequence[tuple[suites.Suite, str]], options: argparse.Namespace) -> int:
    """Each in a machine of its own; a suite that fails, however it does, does not stop the rest."""
    kept = outcomes.Kept(options.cache / "vm-outcomes.json")
    seen: list[outcomes.Outcome] = []
    try:
        for number, (suite, kernel) in enumerate(chosen, 1):
            title = f"{number} of {len(chosen)}: {suite.title}, Linux {kernel}"
            before = getattr(options, "resume", False) and kept.passed_on(
                suite, kernel, tree_mark(TOP)
            )
            if before:
                say(f"{title}: passed on this very tree, not run again")
                seen.append(before)
                continue
            say(title)
            seen.append(_run_suite(suite, kernel, options))
            kept.add(seen[-1])
            print(outcomes.table(seen[-1:]), flush=True)
    finally:
        print(f"\n{outcomes.table(seen)}\n(kept in {options.cache / 'vm-outcomes.json'})")
    return 1 if any(each.failures for each in seen) else 0


def _run_suite(suite: suites.Suite, kernel: str, options: argparse.Namespace) -> outcomes.Outcome:
    """Raises CannotBuild, which the next suite would meet too."""
    tree = tree_mark(TOP)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="podwright-vm-") as name:
        try:
            status = run_inside(
                suite.command,
                cache=options.cache,
                kernel=kernel,
                lsm=options.lsm,
                limit_s=suite.limit_s + suites.END_GRACE_S,
                fetch={suites.REPORTS: Path(name)},
                env={"PODWRIGHT_TEST_DRIVER": suite.driver},
            )
        except (TimeIsUp, MachineFailed) as error:
            reason = f"no answer from the machine: {error}".strip().splitlines()
            took_s = time.monotonic() - started_s
            return outcomes.broken(suite, kernel, " ".join(reason)[:1000], took_s, tree)
        took_s = time.monotonic() - started_s
        return outcomes.outcome(suite, kernel, Path(name), status, took_s, tree)


def run_inside(
    argv: Sequence[str],
    *,
    cache: Path,
    kernel: str,
    limit_s: float,
    lsm: str = APPARMOR,
    fetch: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a command in the tree in a fresh machine; its exit status.

    Args:
        argv: the command; its output goes to standard output.
        cache: the directory of all of hack's caches.
        kernel: of `recipe.KERNELS`.
        limit_s: how long the command may take.
        lsm: of `KINDS`.
        fetch: files or directories inside -> the directory outside that gets them.
        env: variables of the command.

    Raises:
        TimeIsUp, MachineFailed: see `Machine`.
    """
    home = cache / "vm"
    disks = (packages_disk(TOP, cache, home), tree_disk(TOP, home))
    builder, kind = KINDS[lsm]
    boot, state = builder(home).boot(kernel, disks)
    started_s = time.monotonic()
    with kind.restored(boot, home / "scratch", state) as machine:
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
