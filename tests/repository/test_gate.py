"""The gate: what must hold of the tree itself, whoever wrote the last line.

A linter that is not installed skips its test on a developer's machine and fails it in CI.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGES = ("cri", "sandbox", "imageservice", "cni", "metrics", "tests/kit")
#: More than this is read by nobody as a whole; split it.
MODULE_LIMIT_LINES = 400


def tracked(*patterns: str) -> list[Path]:
    """Files of the tree, new ones included, ignored ones not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (TOP / name for name in listed.split("\0") if name)
    return sorted({path for path in paths if path.is_file()})


def must_pass(*argv: str | Path) -> None:
    """Run a checker; its own words are the failure message."""
    program = shutil.which(argv[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(f"{argv[0]} is not installed")
        pytest.skip(f"{argv[0]} is not installed")
    run = subprocess.run([program, *argv[1:]], cwd=TOP, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.fail(f"{argv[0]}:\n{run.stdout}{run.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    must_pass("ruff", "check", "--quiet", ".")


def test_code_is_formatted() -> None:
    must_pass("ruff", "format", "--check", "--quiet", ".")


def test_types_check() -> None:
    must_pass("mypy")


def test_imports_keep_to_the_arrows() -> None:
    must_pass("lint-imports", "--no-cache")


def test_words_are_spelled_right() -> None:
    must_pass("codespell", *tracked())


def is_shell(path: Path) -> bool:
    with path.open("rb") as script:
        first = script.readline()
    return first.startswith((b"#!/usr/bin/env bash", b"#!/bin/sh", b"# shellcheck shell="))


def test_shell_scripts_pass_shellcheck() -> None:
    scripts = [path for path in tracked("hack", ".ci", "tests") if is_shell(path)]
    assert len(scripts) > 5
    must_pass("shellcheck", *scripts)


def test_no_module_is_too_long_to_read() -> None:
    modules = [path for package in PACKAGES for path in tracked(f"{package}/*.py")]
    assert modules
    lengths = {str(p.relative_to(TOP)): len(p.read_text().splitlines()) for p in modules}
    assert {name: n for name, n in lengths.items() if n > MODULE_LIMIT_LINES} == {}


def hack_commands() -> list[Path]:
    return [path for path in tracked("hack") if path.stat().st_mode & 0o111]


def first_comment_block(path: Path) -> str:
    lines: list[str] = []
    for line in path.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines).strip()


@pytest.mark.parametrize("command", hack_commands(), ids=lambda path: path.name)
def test_hack_script_answers_help_with_its_first_comment(command: Path) -> None:
    comment = first_comment_block(command)
    assert command.name in comment.splitlines()[0] or command.name in comment
    run = subprocess.run(
        [command, "--help"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == comment


def readme_commands() -> list[str]:
    readme = TOP / "README.md"
    blocks = re.findall(r"^```sh\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_readme_commands_exist() -> None:
    ours = [c.removeprefix("sudo ") for c in readme_commands()]
    scripts = {c.split()[0] for c in ours if c.startswith("hack/")}
    assert {"hack/up", "hack/test"} <= scripts
    missing = [name for name in scripts if not os.access(TOP / name, os.X_OK)]
    assert missing == []


def test_readme_verbs_of_podwright_exist() -> None:
    verbs = {
        match.group(1)
        for command in readme_commands()
        if (match := re.match(r"(?:\.venv/bin/)?podwright ([a-z]+)", command))
    }
    for verb in sorted(verbs):
        must_pass(sys.executable, "-m", "cri", verb, "--help")


def test_no_file_knows_where_it_was_written() -> None:
    here = str(TOP).encode()
    assert [path for path in tracked() if here in path.read_bytes()] == []


def test_every_module_says_what_it_is() -> None:
    modules = [path for package in PACKAGES for path in tracked(f"{package}/*.py")]
    docstrings = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in modules}
    silent = [str(p.relative_to(TOP)) for p, text in docstrings.items() if len(text) < 20]
    assert silent == []
