"""Findings about CDI files, hooks and resource limits: what containers get by the node's files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from sandbox.cdi.library import CdiLibrary, conflicts
from sandbox.hooks import HookFiles, check_program
from sandbox.host.errors import PodwrightError
from sandbox.host.rlimits import rlimit_ceilings
from sandbox.spec.rlimits import check_settable, parse_rlimit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.host.dropins import Problem
    from sandbox.settings import SandboxSettings

GROUP: Final = "devices and hooks"


def devices(settings: SandboxSettings, *, may_raise: bool) -> list[Finding]:
    """What the node's files say now. Blocking."""
    return [*_cdi(settings), *_hooks(settings), *_rlimits(settings, may_raise=may_raise)]


def _cdi(settings: SandboxSettings) -> list[Finding]:
    looked = CdiLibrary(settings.cdi_spec_dirs).look()
    problems = [*looked.problems, *conflicts(looked)]
    findings = _problems("CDI file", problems, Level.WARNING, "only its devices are missing")
    count = sum(len(file.content.devices) for file in looked.files)
    where = ", ".join(map(str, settings.cdi_spec_dirs)) or "no directory"
    kinds = sorted({file.content.kind for file in looked.files})
    detail = f"{count} devices of {', '.join(kinds)}" if count else f"none in {where}"
    return [*findings, Finding(GROUP, "CDI", Level.OK, detail)]


def _hooks(settings: SandboxSettings) -> list[Finding]:
    if not settings.hooks_dirs:
        return [Finding(GROUP, "hooks", Level.OK, "no directory is configured")]
    looked = HookFiles(settings.hooks_dirs).look()
    findings = _problems(
        "hook file", looked.problems, Level.ERROR, "no container is made until it is mended"
    )
    for file in looked.files:
        try:
            check_program(file.content, file.path)
        except PodwrightError as error:
            remedy = "install the program, or take the hook away"
            findings.append(Finding(GROUP, "hook file", Level.ERROR, str(error), remedy))
    missing = [path for path in settings.hooks_dirs if not path.is_dir()]
    for path in missing:
        findings.append(
            Finding(GROUP, "hooks", Level.WARNING, f"{path} does not exist", "make it, or unset it")
        )
    return [*findings, Finding(GROUP, "hooks", Level.OK, f"{len(looked.files)} files")]


def _problems(
    name: str, problems: Sequence[Problem], level: Level, consequence: str
) -> list[Finding]:
    return [
        Finding(GROUP, name, level, str(problem), f"mend it or take it away; {consequence}")
        for problem in problems
    ]


def _rlimits(settings: SandboxSettings, *, may_raise: bool) -> list[Finding]:
    ceilings = rlimit_ceilings(may_raise=may_raise)
    name = "resource limits"
    if not settings.rlimits:
        return [Finding(GROUP, name, Level.OK, "containers inherit the daemon's")]
    try:
        limits = [parse_rlimit(text) for text in settings.rlimits]
        check_settable(limits, ceilings, "runtime.rlimits")
    except PodwrightError as error:
        return [Finding(GROUP, name, Level.ERROR, error.message, error.hint)]
    return [Finding(GROUP, name, Level.OK, ", ".join(settings.rlimits))]
