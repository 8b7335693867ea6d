"""The one path check."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import InvalidArgument
from sandbox.spec.paths import clean_path, depth, is_at_or_below


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "/"),
        ("//a", "/a"),
        ("/a/./b//c/", "/a/b/c"),
        ("/../../etc", "/etc"),
        ("/a/b/../c", "/a/c"),
        ("/a/" + "x" * 255, "/a/" + "x" * 255),
    ],
)
def test_clean(path: str, expected: str) -> None:
    assert clean_path(path, "it") == expected


@pytest.mark.parametrize(
    "path",
    [
        *("", "a", "./a", "../a", "~", "/a\0b", "/a\nb", "/\ud800", "/" + "a" * 256),
        *("/a" * 2048, "/" + "é" * 128, "/a" * 35_000),
    ],
)
def test_refused(path: str) -> None:
    """CVE-2021-43784 among them: 70 000 bytes."""
    with pytest.raises(InvalidArgument, match="it "):
        clean_path(path, "it")


@given(st.text(alphabet="/.ab", max_size=30))
def test_result_is_canonical(text: str) -> None:
    path = clean_path("/" + text, "it")
    assert path == clean_path(path, "it")
    assert path.startswith("/")
    assert not {".", ".."} & set(path.split("/"))
    assert path == "/" or not path.endswith("/")
    assert posixpath.normpath("/" + text).lstrip("/") == path.lstrip("/")


def test_order() -> None:
    assert is_at_or_below("/a/b", "/a")
    assert is_at_or_below("/a", "/a")
    assert is_at_or_below("/a", "/")
    assert not is_at_or_below("/ab", "/a")
    assert [depth(path) for path in ("/", "/a", "/a/b")] == [0, 1, 2]
