"""References mean what they mean to Docker, or are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageservice.digest import Digest
from imageservice.errors import ReferenceInvalid
from imageservice.reference import MAX_NAME_CHARS, Reference, parse_reference
from sandbox.host.errors import InvalidArgument

HEX = "a1" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/a/b:1", "docker.io/a/b:1", "a/b:1"),
        ("registry-1.docker.io/library/x", "docker.io/library/x:latest", "x:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("local/x", "docker.io/local/x:latest", "local/x:latest"),
        ("host:5000/x:1", "host:5000/x:1", "host:5000/x:1"),
        ("GHCR.io/A/b".replace("A", "a"), "ghcr.io/a/b:latest", "ghcr.io/a/b:latest"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1", "[::1]:5000/a:1"),
        (f"x@sha256:{HEX}", f"docker.io/library/x@sha256:{HEX}", f"x@sha256:{HEX}"),
        (f"x:1@sha256:{HEX}", f"docker.io/library/x:1@sha256:{HEX}", f"x:1@sha256:{HEX}"),
        ("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f:latest", "a__b/c---d.e_f:latest"),
        # As Docker reads it: an image with a tag, not a registry with a port.
        ("host.example:5000", "docker.io/library/host.example:5000", "host.example:5000"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        (f"docker.io/library/{HEX}", f"docker.io/library/{HEX}:latest", f"library/{HEX}:latest"),
        ("x:Tag_1.2-3", "docker.io/library/x:Tag_1.2-3", "x:Tag_1.2-3"),
    ],
)
def test_a_reference_is_normalised(text, canonical, familiar):
    reference = parse_reference(text)
    assert reference.canonical == str(reference) == canonical
    assert reference.familiar == familiar
    assert parse_reference(canonical) == reference
    assert parse_reference(familiar) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "/",
        "//",
        "a:",
        "a@",
        ":tag",
        "a b",
        " a",
        "a\n",
        "a\0",
        "docker://busybox",
        "https://ghcr.io/a",
        "BusyBox",
        "Foo/bar",
        "docker.io/Foo",
        "a/../b",
        "../a",
        "a//b",
        "a/",
        "/a",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a._b",
        "a:b:c",
        "a:-x",
        "a:.x",
        "a:" + "t" * 129,
        "a" * 4096,
        "a/" * 127 + "ab",
        HEX,
        f"a@sha256:{HEX.upper()}",
        "a@sha256:abc",
        f"a@md5:{HEX[:32]}",
        f"a@sha256:{HEX}@sha256:{HEX}",
        "bücher.example/a",
        "\u0430pple/a",
        "a:\uff11",
        "host:99999/a",
        "host:0/a",
        "host:05000/a",
        "host:00443/a",
        "host:/a",
        "-host.example/a",
        "host-.example/a",
        "a..b.example/a",
        ".example/a",
        "example./a",
        "[::1/a",
        "[:::1]/a",
        "[127.0.0.1]:5000/a",
        "[::1]x/a",
        "user@host.example/a",
        "_default/_x",
        "a?b",
        "a#b",
        "a%2fb",
        "a\\b",
    ],
)
def test_what_is_no_reference_is_an_invalid_argument(text):
    with pytest.raises(ReferenceInvalid) as caught:
        parse_reference(text)
    assert isinstance(caught.value, InvalidArgument)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_repo_tag_and_repo_digest_forms():
    digest = Digest("sha256", HEX)
    reference = parse_reference("busybox:1")
    assert reference.tagged == "docker.io/library/busybox:1"
    assert str(reference.with_digest(digest)) == f"docker.io/library/busybox@sha256:{HEX}"
    assert reference.with_digest(digest).tagged is None


_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
_DOMAINS = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.tuples(_LABEL, _LABEL).map(".".join),
    st.tuples(_LABEL, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]:5000"),
)
_PATHS = st.lists(
    st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True),
    min_size=1,
    max_size=4,
)
_TAGS = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
_DIGESTS = st.none() | st.binary(max_size=4).map(Digest.of)


@settings(max_examples=50)
@given(_DOMAINS, _PATHS, _TAGS, _DIGESTS)
def test_every_form_of_a_reference_leads_back_to_it(domain, path, tag, digest):
    suffix = ("" if tag is None else f":{tag}") + ("" if digest is None else f"@{digest}")
    reference = parse_reference(f"{domain}/{'/'.join(path)}{suffix}")
    assert parse_reference(reference.canonical) == reference
    assert parse_reference(reference.familiar) == reference
    assert reference.digest == digest
    assert reference.tag == (tag or (None if digest else "latest"))
    assert len(reference.familiar) <= len(reference.canonical)


@given(st.text(max_size=80) | st.text(alphabet="aA0.:/@-_[]%\\ ", max_size=40))
def test_any_text_is_a_reference_that_stays_itself_or_invalid(text):
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        return
    assert isinstance(reference, Reference)
    assert parse_reference(str(reference)) == reference
    assert ".." not in reference.path
    assert len(reference.repository) <= MAX_NAME_CHARS
    assert reference.repository == reference.repository.lower()
