"""What the command line shows: findings, configuration and the progress of a pull."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cri import settings_table as table
from cri.check.finding import Level
from cri.config import toml_text
from cri.config_files import HANDLERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri.check.finding import Finding
    from cri.config import Config

_MARKS: Final = {
    Level.OK: "[green]ok[/green]",
    Level.WARNING: "[yellow]warning[/yellow]",
    Level.ERROR: "[red]missing[/red]",
}


# check


def findings_json(findings: Sequence[Finding]) -> str:
    """Findings as a JSON list."""
    return msgspec.json.format(msgspec.json.encode(findings)).decode()


def show_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Findings as a table, then a line of sums."""
    console = console or Console()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("")
    grid.add_column("what", no_wrap=True)
    grid.add_column("found, and what to do", overflow="fold")
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            grid.add_row("", Text(group, style="bold"), "")
        found = Text(finding.detail)
        if finding.level is not Level.OK and finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="cyan")
        grid.add_row(_MARKS[finding.level], Text(f"  {finding.name}"), found)
    console.print(grid)
    sums = Counter(finding.level for finding in findings)
    console.print(
        f"{sums[Level.OK]} ok, {sums[Level.WARNING]} warnings, {sums[Level.ERROR]} missing"
    )


# config


def config_text(config: Config, *, explain: bool = False) -> str:
    """The effective configuration as TOML, with the origin of every value as a comment."""
    lines = [f"# read: {file}" for file in config.files] or ["# no file read"]
    section = ""
    for setting in table.TABLE:
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"]
        if explain:
            again = "; may be reloaded" if setting.reloadable else ""
            lines.append(f"# {setting.help}{again}")
        value = toml_text(config.get(setting))
        lines.append(f"{setting.name} = {value}  # {config.origins[setting.key]}")
    for handler in config.handlers:
        lines += ["", f"[{HANDLERS}.{handler.name}]"]
        for setting in table.HANDLER_TABLE:
            if explain:
                lines.append(f"# {setting.help}")
            key = f"{HANDLERS}.{handler.name}.{setting.name}"
            value = toml_text(getattr(handler, setting.name))
            lines.append(f"{setting.name} = {value}  # {config.origins.get(key, 'default')}")
    return "\n".join(lines)
