"""Reads configuration files into values by the table, and collects every problem with its place."""

from __future__ import annotations

import difflib
import re
import tomllib
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from cri import settings_table as table
from sandbox.host.errors import InvalidArgument, PodwrightError
from sandbox.settings import RuntimeHandler, default_handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cri.setting import Setting

DROP_INS: Final = "config.d"
#: A configuration is a page or two.
FILE_LIMIT_BYTES: Final = 1024 * 1024
DEFAULT: Final = "default"
ENVIRONMENT: Final = "environment"
HANDLERS: Final = "runtimes"

_SECTION = re.compile(r"\s*\[\s*([A-Za-z0-9_.\"' -]+?)\s*\]\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")

T = TypeVar("T")


class ConfigInvalid(InvalidArgument):
    """The configuration has problems; `problems` has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(
            f"configuration is not valid: {problems[0]}{more}",
            hint="podwright config --validate shows every problem",
        )
        self.problems = tuple(problems)


class Reading:
    """The configuration while it is being put together."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {s.key: s.default for s in table.TABLE}
        self.origins: dict[str, str] = {s.key: DEFAULT for s in table.TABLE}
        self.problems: list[str] = []
        self._handlers: dict[str, dict[str, object]] = {}
        self._sections: dict[str, dict[str, Setting[object]]] = {}
        for setting in table.TABLE:
            self._sections.setdefault(setting.section, {})[setting.name] = setting
        self._handler_keys = {s.name: s for s in table.HANDLER_TABLE}

    def attempt(self, origin: str, call: Callable[[], T]) -> T | None:
        """The result of `call`, or a problem."""
        try:
            return call()
        except PodwrightError as error:
            self.problems.append(f"{origin}: {error}" if origin else str(error))
            return None

    def tree(self, main: Path, *, required: bool) -> tuple[Path, ...]:
        """Take over `main` and the drop-ins beside it; the files that were there."""
        files = []
        try:
            if required or main.exists():
                files.append(main)
            files += sorted((main.parent / DROP_INS).glob("*.toml"))
        except OSError as error:
            self.problems.append(f"{main.parent / DROP_INS}: {error.strerror}")
        for file in files:
            self._file(file)
        return tuple(files)

    def _file(self, path: Path) -> None:
        try:
            if path.stat().st_size > FILE_LIMIT_BYTES:
                self.problems.append(f"{path}: larger than {FILE_LIMIT_BYTES} bytes")
                return
            text = path.read_text(encoding="utf-8")
            document: dict[str, object] = tomllib.loads(text)
        except OSError as error:
            self.problems.append(f"{path}: {error.strerror}")
            return
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            self.problems.append(f"{path}: {error}")
            return
        lines = line_numbers(text)

        def origin(key: str) -> str:
            return f"{path}:{lines[key]}" if key in lines else str(path)

        for section, content in document.items():
            if not isinstance(content, dict):
                self._unknown(str(path), "section", section, [*self._sections, HANDLERS])
            elif section == HANDLERS:
                for name, keys in content.items():
                    for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
                        where = f"{section}.{name}"
                        self.value(where, key, value, origin(f"{where}.{key}"))
            else:
                for name, value in content.items():
                    self.value(section, name, value, origin(f"{section}.{name}"))

    def value(self, section: str, name: str, value: object, origin: str) -> None:
        """Take over one value."""
        if section.startswith(f"{HANDLERS}."):
            self._handler_value(section.partition(".")[2], name, value, origin)
            return
        if section not in self._sections:
            self._unknown(origin, "section", section, [*self._sections, HANDLERS])
            return
        setting = self._sections[section].get(name)
        if setting is None:
            self._unknown(origin, f"key in [{section}]", name, list(self._sections[section]))
            return
        before = len(self.problems)
        parsed = self.attempt(f"{origin}: {setting.key}", lambda: setting.parse(value))
        if len(self.problems) == before:
            self.values[setting.key] = parsed
            self.origins[setting.key] = origin

    def variable(self, setting: Setting[object], value: object, variable: str) -> None:
        """Take over a variable of the environment; one that cannot be used leaves a note only."""
        try:
            self.values[setting.key] = setting.parse(value)
            self.origins[setting.key] = f"{ENVIRONMENT} {variable}"
        except InvalidArgument as error:
            self.origins[setting.key] = f"{ENVIRONMENT} {variable} is not used: {error.message}"

    def _handler_value(self, handler: str, name: str, value: object, origin: str) -> None:
        setting = self._handler_keys.get(name)
        if setting is None:
            known = list(self._handler_keys)
            self._unknown(origin, f"key in [{HANDLERS}.{handler}]", name, known)
            return
        parsed = self.attempt(
            f"{origin}: {HANDLERS}.{handler}.{name}", lambda: setting.parse(value)
        )
        if parsed is not None:
            self._handlers.setdefault(handler, {})[name] = parsed
            self.origins[f"{HANDLERS}.{handler}.{name}"] = origin

    def _unknown(self, origin: str, what: str, name: str, known: list[str]) -> None:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
        self.problems.append(f"{origin}: unknown {what}: {name}{hint}")

    def handlers(self) -> tuple[RuntimeHandler, ...]:
        """Those that distributions have (crun, runc), changed and added to by the tables."""
        run_root = cast("Path", self.values[table.RUN_ROOT.key])
        made = {handler.name: handler for handler in default_handlers(run_root)}
        for name, keys in self._handlers.items():
            base = made.get(name)
            if base is None and "path" not in keys:
                self.problems.append(f"{HANDLERS}.{name}: path is missing")
                continue
            handler = self.attempt(
                f"{HANDLERS}.{name}", partial(_handler, name, base, keys, run_root)
            )
            if handler is not None:
                made[name] = handler
        return tuple(made.values())


def _handler(
    name: str, base: RuntimeHandler | None, keys: Mapping[str, object], run_root: Path
) -> RuntimeHandler:
    if base is None:
        base = RuntimeHandler(
            name=name, path=cast("Path", keys["path"]), root=run_root / "runtime" / name
        )
    return RuntimeHandler(
        name=name,
        path=cast("Path", keys.get("path", base.path)),
        root=cast("Path", keys.get("root", base.root)),
        options=cast("tuple[str, ...]", keys.get("options", base.options)),
        allowed_annotations=cast(
            "tuple[str, ...]", keys.get("allowed_annotations", base.allowed_annotations)
        ),
        privileged_without_host_devices=bool(
            keys.get("privileged_without_host_devices", base.privileged_without_host_devices)
        ),
    )


def line_numbers(text: str) -> dict[str, int]:
    """Line of each `section.key` that is written the usual way, one to a line.

    tomllib keeps no positions. This reads headers and keys only, and is used for messages alone: a
    key in another notation just has no line.
    """
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if (header := _SECTION.fullmatch(line)) is not None:
            section = header[1].replace('"', "").replace("'", "").replace(" ", "")
        elif (key := _KEY.match(line)) is not None:
            lines.setdefault(f"{section}.{key[1]}", number)
    return lines
