"""Our AppArmor profile: what its text says; tests/host/test_apparmor.py sees it obeyed."""

from __future__ import annotations

import re

import pytest

from sandbox.security.apparmor_text import DEFAULT_PROFILE, profile_text


def text(
    *, parser: tuple[int, int] = (3, 0), abi: bool = True, own_label: str = "unconfined"
) -> str:
    return profile_text(parser=parser, abi=abi, own_label=own_label)


def test_it_needs_nothing_of_the_node() -> None:
    assert "include" not in text(abi=False)
    assert "@{" not in text()
    assert "abi <abi/3.0>," in text(abi=True)
    assert "abi <" not in text(abi=False)


@pytest.mark.parametrize(
    "rule",
    [
        "deny mount,",
        "deny umount,",
        "deny remount,",
        "deny pivot_root,",
        "deny /proc/sys/** wl,",
        "deny /proc/sysrq-trigger rwl,",
        "deny /proc/{mem,kmem,kcore} rwl,",
        "deny /dev/{mem,kmem,port} rwl,",
        f"signal (send, receive) peer={DEFAULT_PROFILE},",
        f"ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},",
        "signal (receive) peer=unconfined,",
    ],
)
def test_it_has_the_rule(rule: str) -> None:
    assert f"  {rule}\n" in text()


def test_rules_of_later_parsers_are_only_for_them() -> None:
    assert "userns" not in text(parser=(3, 1))
    assert "  userns,\n  mqueue,\n" in text(parser=(4, 0))
    assert "  userns,\n" in text(parser=(5, 0))


def test_the_daemons_own_signals_come_in() -> None:
    assert "signal (receive) peer=/usr/bin/podwright," in text(own_label="/usr/bin/podwright")
    assert text(own_label="unconfined").count("peer=unconfined") == 1
    assert text(own_label="crun").count("peer=crun") == 1
    assert text(own_label=DEFAULT_PROFILE) == text(own_label="")


@pytest.mark.parametrize(
    "label", ["a, mount, b", "a b", "a\n}", "a//&:ns://b", "x,", "{a,b}", "*", "a" * 256]
)
def test_a_label_never_becomes_a_rule(label: str) -> None:
    assert text(own_label=label) == text()


def test_every_rule_ends_and_braces_fit() -> None:
    lines = [line.strip() for line in text(parser=(4, 0)).splitlines()]
    body = lines[lines.index(next(line for line in lines if line.endswith(" {"))) + 1 : -1]
    assert all(line.endswith(",") for line in body if line and not line.startswith("#"))
    assert lines[-1] == "}"
    assert not re.search(r"\{\{|\}\}", text())
