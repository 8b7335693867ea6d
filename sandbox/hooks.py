"""OCI hooks that the administrator of the node has every fitting container run: oci-hooks(5) 1.0.0.

A file says which program, at which stages, and when: always, for containers with bind mounts, with
a command or with annotations that match. Hooks run on the host as root, so they come from the
configured directories alone (none by default; `sandbox.host.dropins` makes sure that they are
root's) and from CDI files; no request, annotation or image can bring one. Annotations may *choose*
among them, where a file says so: those of the pod and of the container, as the request has them.

Files are taken in the order of their names; a file of a later directory stands in for one of the
same name in an earlier one. Regular expressions are the administrator's, looked for anywhere in the
text as POSIX and Go do it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from sandbox import oci
from sandbox.host.dropins import DropIns, check_trusted
from sandbox.host.errors import FailedPrecondition, InvalidArgument, PodwrightError
from sandbox.spec.paths import clean_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.host.clock import Clock

SUFFIXES: Final = (".json",)
VERSION: Final = "1.0.0"
#: A hook file is a dozen lines (bytes).
FILE_LIMIT_BYTES: Final = 64 * 1024
#: Runs in the container, so its program is one of the image.
_INSIDE: Final = "startContainer"


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    pass


class _Hook(_Part, frozen=True, kw_only=True):
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Annotated[int, msgspec.Meta(gt=0)] | None = None


class _When(_Part, frozen=True, kw_only=True):
    always: bool | None = None
    annotations: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    has_bind_mounts: bool | None = None


class _File(_Part, frozen=True, kw_only=True):
    version: str
    hook: _Hook
    when: _When
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeHook:
    """One file, its expressions compiled. None of a condition means that it is not one."""

    hook: oci.Hook
    stages: tuple[str, ...]
    always: bool | None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]
    commands: tuple[re.Pattern[str], ...]
    has_bind_mounts: bool | None

    def fits(self, facts: ContainerFacts) -> bool:
        """Whether every condition holds; of the commands one is enough."""
        if self.always is not None and not self.always:
            return False
        if self.has_bind_mounts not in (None, facts.has_bind_mounts):
            return False
        if self.commands and not any(each.search(facts.command) for each in self.commands):
            return False
        return all(
            any(key.search(k) and value.search(v) for k, v in facts.annotations.items())
            for key, value in self.annotations
        )


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What conditions look at.

    Attributes:
        command: first word of what is executed.
        annotations: of the pod, and over them of the container.
        has_bind_mounts: the request has mounts.
    """

    command: str
    annotations: Mapping[str, str]
    has_bind_mounts: bool


def parse(data: bytes, _path: Path) -> NodeHook:
    """The hook in a file.

    Raises:
        InvalidArgument: saying what is wrong with it.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise InvalidArgument(f"not a hook of oci-hooks(5): {error}") from error
    if file.version != VERSION:
        raise InvalidArgument(f"version is {file.version[:32]!a}, not {VERSION}")
    clean_path(file.hook.path, "the program of the hook")
    unknown = [stage for stage in file.stages if stage not in oci.HOOK_STAGES]
    if unknown or not file.stages:
        known = ", ".join(oci.HOOK_STAGES)
        raise InvalidArgument(f"stages must be of {known}, not {unknown[:1] or 'none'}")
    when = file.when
    if when == _When():
        raise InvalidArgument("when has no condition, so the hook would never run")
    for entry in file.hook.env:
        if not entry.partition("=")[0] or "=" not in entry:
            raise InvalidArgument(f"env has an entry that is not NAME=value: {entry[:32]!a}")
    return NodeHook(
        hook=oci.Hook(
            path=file.hook.path, args=file.hook.args, env=file.hook.env, timeout=file.hook.timeout
        ),
        stages=tuple(dict.fromkeys(file.stages)),
        always=when.always,
        annotations=tuple(
            (_pattern(key), _pattern(value)) for key, value in when.annotations.items()
        ),
        commands=tuple(_pattern(command) for command in when.commands),
        has_bind_mounts=when.has_bind_mounts,
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError) as error:
        raise InvalidArgument(f"not a regular expression: {text[:64]!a}: {error}") from error


class HookFiles(DropIns[NodeHook]):
    """The hooks of the configured directories."""

    def __init__(self, directories: Iterable[Path], *, clock: Clock | None = None) -> None:
        super().__init__(
            directories, suffixes=SUFFIXES, parse=parse, limit_bytes=FILE_LIMIT_BYTES, clock=clock
        )

    def hooks_for(self, facts: ContainerFacts) -> dict[str, list[oci.Hook]]:
        """The hooks of a container by stage, in the order of their files' names. Blocking.

        Raises:
            FailedPrecondition: a file cannot be used, so nobody knows whether it would have been
                for this container, and a hook that guards must not be left out; or a program that
                is to run as root is missing or not root's alone.
        """
        if not self.directories:
            return {}
        looked = self.look()
        if looked.problems:
            raise FailedPrecondition(
                f"hook file cannot be used: {looked.problems[0]}",
                hint="mend it or take it away; podwright check lists all",
            )
        by_name = {file.path.name: file for file in looked.files}
        found: dict[str, list[oci.Hook]] = {}
        for _, file in sorted(by_name.items()):
            if not file.content.fits(facts):
                continue
            check_program(file.content, file.path)
            for stage in file.content.stages:
                found.setdefault(stage, []).append(file.content.hook)
        return found


def check_program(hook: NodeHook, file: Path) -> None:
    """Make sure that the program is there and only root could have put it there. Blocking.

    Raises:
        FailedPrecondition: otherwise.
    """
    if set(hook.stages) == {_INSIDE}:
        return
    path = Path(hook.hook.path)
    try:
        check_trusted(path)
    except PodwrightError as error:
        raise FailedPrecondition(f"program of the hook {file}: {error.message}") from error
    if not stat.S_ISREG(path.stat().st_mode) or not os.access(path, os.X_OK):
        raise FailedPrecondition(f"program of the hook {file} is not executable: {path}")
