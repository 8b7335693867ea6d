"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri.config import Config

P = ParamSpec("P")


def _overrides(values: tuple[str, ...], **named: object) -> dict[str, object]:
    from cri.config import flag_value

    result: dict[str, object] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise click.BadParameter(f"{text!r} is not SECTION.KEY=VALUE", param_hint="--set")
        result[key.strip()] = flag_value(value.strip())
    result.update({f"daemon.{key}": value for key, value in named.items() if value is not None})
    return result


def load_config(config: Path | None, values: tuple[str, ...], **named: object) -> Config:
    """The configuration with what the command line says."""
    from cri.config import load

    return load(config, _overrides(values, **named))


def configured(command: Callable[P, None]) -> Callable[P, None]:
    """The options of every command that needs the configuration."""
    for option in (
        click.option(
            "--set",
            "values",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Override one setting, as in --set cni.ip_pref=ipv6; may be repeated.",
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Configuration file.  [default: /etc/podwright/config.toml]",
        ),
    ):
        command = option(command)
    return command
