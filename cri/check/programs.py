"""Findings about the programs that are run: OCI runtimes, conmon, the pause program."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.processes import ProcessRunner
    from sandbox.settings import SandboxSettings

GROUP: Final = "programs"
TIMEOUT_S: Final = 10.0

_VERSION: Final = re.compile(r"\d+(?:\.\d+)+[^\s,]*")
#: ELF: e_ident begins with this; program headers name an interpreter when it is not static.
_ELF: Final = b"\x7fELF"


async def programs(settings: SandboxSettings, pause: Path, runner: ProcessRunner) -> list[Finding]:
    """Whether each program is there, and which one it is."""
    findings = []
    for handler in settings.handlers:
        default = handler.name == settings.default_handler
        findings.append(
            await _program(
                f"runtime {handler.name}" + (" (default)" if default else ""),
                handler.path,
                runner,
                # A handler that nobody asks for may be missing.
                missing=Level.ERROR if default else Level.WARNING,
                remedy=f"install {handler.path.name}, or set runtimes.{handler.name}.path",
            )
        )
    findings.append(
        await _program(
            "monitor",
            settings.conmon_path,
            runner,
            missing=Level.ERROR,
            remedy="install conmon, or set runtime.conmon_path",
        )
    )
    found = await _program(
        "pause",
        pause,
        runner,
        missing=Level.ERROR,
        remedy="install catatonit, or set runtime.pause_path",
    )
    if found.level is Level.OK and not await asyncio.to_thread(is_static, pause):
        found = Finding(
            GROUP,
            "pause",
            Level.ERROR,
            f"{pause} needs libraries, which a pod's root does not have",
            "use a statically linked program such as Debian's catatonit",
        )
    return [*findings, found]


async def _program(
    name: str, path: Path, runner: ProcessRunner, *, missing: Level, remedy: str
) -> Finding:
    if not await asyncio.to_thread(is_program, path):
        return Finding(GROUP, name, missing, f"no program at {path}", remedy)
    try:
        finished = await runner.run([str(path), "--version"], timeout_s=TIMEOUT_S)
    except PodwrightError as error:
        return Finding(GROUP, name, missing, str(error), remedy)
    if finished.exit_status != 0:
        return Finding(
            GROUP, name, missing, f"{path} --version ends with {finished.exit_status}", remedy
        )
    version = version_in(finished.stdout) or "version unknown"
    package = await package_version(path, runner)
    # A distribution mends old versions: only the package's version tells what is in it.
    origin = f" (package {package})" if package else ""
    return Finding(GROUP, name, Level.OK, f"{path} {version}{origin}")


def version_in(output: bytes) -> str:
    """The first thing in a program's output that looks like a version; empty for none."""
    match = _VERSION.search(output.decode(errors="replace"))
    return match[0] if match else ""


def is_program(path: Path) -> bool:
    """Whether `path` is a file that may be run."""
    return path.is_file() and os.access(path, os.X_OK)


async def package_version(path: Path, runner: ProcessRunner) -> str:
    """Version of the Debian package that `path` belongs to; empty where there is none."""
    real = await asyncio.to_thread(path.resolve)
    try:
        owner = await runner.run(["dpkg-query", "-S", str(real)], timeout_s=TIMEOUT_S)
        if owner.exit_status != 0:
            return ""
        package = owner.stdout.decode(errors="replace").partition(": ")[0].partition(",")[0]
        shown = await runner.run(
            ["dpkg-query", "-W", "-f", "${Version}", "--", package], timeout_s=TIMEOUT_S
        )
    except PodwrightError:
        return ""
    return shown.stdout.decode(errors="replace").strip() if shown.exit_status == 0 else ""


def is_static(path: Path) -> bool:
    """Whether an ELF program needs no interpreter (PT_INTERP, elf(5)); scripts do need one."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or not head.startswith(_ELF):
            return False
        wide = head[4] == 2
        little = head[5] == 1

        def number(data: bytes, at: int, size: int) -> int:
            return int.from_bytes(data[at : at + size], "little" if little else "big")

        offset = number(head, 32, 8) if wide else number(head, 28, 4)
        size, count = (number(head, 54 if wide else 42, 2), number(head, 56 if wide else 44, 2))
        file.seek(offset)
        headers = file.read(size * count)
        return all(number(headers, index * size, 4) != 3 for index in range(count))
