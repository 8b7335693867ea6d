"""Settings that would become wrong paths or options are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.host.errors import InvalidArgument
from sandbox.settings import RuntimeHandler, SandboxSettings, default_handlers

HANDLER = RuntimeHandler(name="crun", path=Path("/usr/bin/crun"), root=Path("/run/crun"))


def test_the_default_handler_answers_to_no_name() -> None:
    settings = SandboxSettings()
    assert settings.handler("").name == "crun"
    assert settings.handler("runc").root == Path("/run/podwright/runtime/runc")
    with pytest.raises(InvalidArgument, match="crun, runc"):
        settings.handler("kata")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "x" * 64])
def test_handler_names_become_directories(name: str) -> None:
    with pytest.raises(InvalidArgument):
        replace(HANDLER, name=name)


def test_paths_are_absolute_and_options_are_options() -> None:
    for change in ({"path": Path("crun")}, {"root": Path("run")}, {"options": ("delete",)}):
        with pytest.raises(InvalidArgument):
            replace(HANDLER, **change)


def test_names_are_unique_and_the_default_exists() -> None:
    with pytest.raises(InvalidArgument, match="same name"):
        SandboxSettings(handlers=(HANDLER, HANDLER))
    with pytest.raises(InvalidArgument, match="no such runtime handler"):
        SandboxSettings(handlers=default_handlers(), default_handler="kata")
