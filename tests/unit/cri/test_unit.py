"""The unit says what a node's runtime needs, and its command survives systemd's quoting."""

from __future__ import annotations

import configparser

import pytest

from cri.unit import unit_text
from sandbox.host.errors import InvalidArgument


def section(text: str, name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string(text)
    return parser[name]


def test_what_others_rely_on():
    service = section(unit_text(["/opt/bin/podwright", "serve"], stop_grace_s=10.0), "Service")
    assert service["ExecStart"] == "/opt/bin/podwright serve"
    wanted = {
        "Type": "notify",
        "KillMode": "process",
        "Delegate": "yes",
        "Restart": "always",
        "OOMScoreAdjust": "-999",
        "TasksMax": "infinity",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "TimeoutStopSec": "40",
    }
    assert {key: service[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/etc/a b.toml", '"/etc/a b.toml"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "x"', '"say \\"x\\""'),
        ("", '""'),
    ],
)
def test_arguments_are_quoted_as_systemd_reads_them(word, written):
    service = section(unit_text(["/p", word], stop_grace_s=0), "Service")
    assert service["ExecStart"] == f"/p {written}"


@pytest.mark.parametrize("start", [[], ["podwright"], ["/p", "a\nExecStart=/evil"]])
def test_what_cannot_be_written_is_refused(start):
    with pytest.raises(InvalidArgument):
        unit_text(start, stop_grace_s=0)
