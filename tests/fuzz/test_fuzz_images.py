"""What comes from clients, registries and operators about images: texts in, values or our errors.

References come from the kubelet, manifests, indexes, configs and WWW-Authenticate from a stranger,
hosts.toml from the operator's disk. Documents are generated as they should be, with anything in the
place of any part, then written as JSON, as JSON with damage, and as bytes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imageservice.digest import Digest
from imageservice.errors import (
    DigestInvalid,
    HostsConfigInvalid,
    ImageUnsupported,
    ManifestInvalid,
    PlatformNotFound,
    ReferenceInvalid,
    RegistryProtocolError,
    TooLarge,
)
from imageservice.manifest import (
    MAX_BLOB_BYTES,
    MAX_LAYERS,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
    select_platform,
)
from imageservice.reference import MAX_REFERENCE_CHARS, parse_reference
from imageservice.registry import challenge as ch
from imageservice.registry.hosts import HostsDirectory
from imageservice.registry.origins import Origin, check_realm, parse_url, redirect_target
from tests.kit.fuzzing import assert_tellable, fuzzed

# -- texts ------------------------------------------------------------------------------------

texts = st.text(max_size=20)
hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
digests = (
    hexadecimal.map("sha256:".__add__)
    | st.sampled_from(
        [
            "", "sha256:", "sha256:../../x", "sha256:" + "A" * 64, "sha256:" + "0" * 63,
            "sha256:" + "0" * 63 + "\0", "md5:" + "0" * 32, "sha512:" + "0" * 128, "sha256",
            "sha256:" + "\u0660" * 64, "sha256:" + "0" * 64 + "\n", "sha256+b64:" + "0" * 64,
        ]
    )
    | texts
)  # fmt: skip
pieces = st.sampled_from(
    [
        "a", "busybox", "docker.io", "localhost", "registry.example:5000", "[::1]:5000", "library",
        "A", "_", "-", ".", "..", "/", "//", ":", "@", ":latest", "@sha256:" + "0" * 64, "%2e%2e",
        "\0", "\n", " ", "\u0430", "http://", "a" * 256, "127.0.0.1", ":99999", "[", "]", "::",
    ]
)  # fmt: skip
references = st.lists(pieces | texts, max_size=8).map("".join)


@pytest.mark.cell("MF10")
@fuzzed(500)
@given(references)
def test_any_text_is_a_reference_that_stays_itself_or_invalid(text: str) -> None:
    try:
        found = parse_reference(text)
    except ReferenceInvalid as error:
        assert_tellable(error)
        return
    assert len(found.canonical) <= MAX_REFERENCE_CHARS + 40
    assert parse_reference(found.canonical) == found
    assert parse_reference(found.familiar) == found
    # It ends in URLs and in file names: nothing there that means something to either.
    for part in (found.domain, *found.path.split("/"), found.tag or "x"):
        assert part not in ("", ".", "..")
        assert not set(part) & set(" /\\%?#\0\r\n")


@fuzzed()
@given(digests)
def test_any_text_is_a_digest_that_is_a_plain_file_name_or_invalid(text: str) -> None:
    try:
        found = Digest.parse(text)
    except DigestInvalid as error:
        assert_tellable(error)
        return
    assert str(found) == text
    assert Path(found.hex).name == found.hex
    assert found.hex.isalnum()


# -- documents --------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()  # NaN and infinities are written by json.dumps, and are no JSON
    | texts
    | st.sampled_from(["\ud800", "\udfff\ud800", "\0"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def nearly(**expected: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """An object with these keys, each left out, as it should be, or of anything."""
    usual = {key: st.one_of(value, value, value, anything) for key, value in expected.items()}
    return st.fixed_dictionaries({}, optional=usual)


media_types = st.sampled_from(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/json; charset=utf-8",
        "",
    ]
)
platforms = nearly(
    os=st.sampled_from(["linux", "windows"]),
    architecture=st.sampled_from(["amd64", "arm64", "arm", "unknown"]),
    variant=st.sampled_from(["v8", "v7", "v6", "", "v1", "v\u0661", "v" + "9" * 5000]),
)
descriptors = nearly(
    mediaType=media_types,
    digest=digests,
    size=st.integers(-1, MAX_BLOB_BYTES + 1),
    platform=platforms,
    urls=st.lists(texts, max_size=2),
    annotations=st.dictionaries(texts, texts, max_size=2),
)
good_descriptors = st.fixed_dictionaries(
    {"mediaType": media_types, "digest": hexadecimal.map("sha256:".__add__), "size": st.just(7)},
    optional={"platform": platforms},
)
some_descriptors = st.lists(good_descriptors | descriptors, max_size=3)
manifests = nearly(
    schemaVersion=st.just(2),
    mediaType=media_types,
    config=good_descriptors | descriptors,
    layers=some_descriptors,
    subject=descriptors,
)
indexes = nearly(
    schemaVersion=st.just(2), mediaType=media_types, manifests=some_descriptors, subject=descriptors
)
string_lists = st.none() | st.lists(texts, max_size=3)
configs = nearly(
    architecture=st.just("amd64"),
    os=st.just("linux"),
    variant=texts,
    created=texts,
    rootfs=nearly(type=st.just("layers"), diff_ids=st.lists(digests, max_size=3)),
    config=nearly(
        User=texts,
        Env=string_lists,
        Entrypoint=string_lists,
        Cmd=string_lists,
        WorkingDir=texts,
        Volumes=st.dictionaries(texts, anything, max_size=2),
        ExposedPorts=st.dictionaries(texts, anything, max_size=2),
        Labels=st.dictionaries(texts, texts, max_size=2),
        StopSignal=texts,
    ),
)


@st.composite
def written(draw: st.DrawFn, documents: st.SearchStrategy[object]) -> bytes:
    """The document as JSON; sometimes merged with another, with damage, nested, or noise."""
    document = draw(documents)
    if draw(st.integers(0, 4)) == 0:
        other = draw(documents)
        if isinstance(document, dict) and isinstance(other, dict):
            document = {**other, **document}
    text = json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 9)):
        case 0:  # a key twice, which only the text can say
            text = text.replace(b"{", b'{"digest": "sha256:x", "layers": [], ', 1)
        case 1:
            text = b"[" * draw(st.integers(0, 3000)) + text
        case 2 if text:
            at = draw(st.integers(0, len(text) - 1))
            text = text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 4)) :]
        case 3:
            text = draw(st.binary(max_size=200))
        case _:
            pass
    return text


def is_clean(value: object) -> bool:
    """Whether everything in it can be stored and sent: no lone surrogates anywhere."""
    msgspec.json.encode(value).decode("utf-8")
    return True


@fuzzed(600)
@given(written(manifests | indexes | anything), media_types | texts)
@example(b'{"schemaVersion":2,"manifests":[]' + b" " * 100, "")
@example(b"[" * 1_000_000, "")
@example(b'{"a":' * 200_000, "")
@example(b'{"schemaVersion":2,"x":1' + b"0" * 5000 + b"}", "")
def test_any_bytes_are_a_manifest_or_our_error(body: bytes, content_type: str) -> None:
    try:
        found = parse_manifest(body, content_type)
    except (ManifestInvalid, ImageUnsupported, TooLarge) as error:
        assert_tellable(error)
        return
    assert is_clean(found)
    pointers = found.manifests if isinstance(found, Index) else (found.config, *found.layers)
    for pointer in pointers:
        assert str(pointer.parsed_digest) == pointer.digest
        assert 0 <= pointer.size_bytes <= MAX_BLOB_BYTES
    if isinstance(found, Manifest):
        assert len(found.layers) <= MAX_LAYERS
    # No other reader may see another kind of document in the same bytes.
    keys = json.loads(body)
    assert ("manifests" in keys) == isinstance(found, Index)
    assert not {"layers", "config", "fsLayers"} & set(keys) or isinstance(found, Manifest)


@fuzzed()
@given(st.lists(good_descriptors, max_size=4), st.sampled_from(["x86_64", "aarch64", "armv7l"]))
def test_the_choice_from_any_index_is_one_that_runs_here(
    entries: list[dict[str, object]], machine: str
) -> None:
    body = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    host = Platform.host(machine)
    try:
        index = parse_manifest(body, "")
        assert isinstance(index, Index)
        chosen = select_platform(index, host)
    except (ManifestInvalid, PlatformNotFound) as error:
        assert_tellable(error)
        return
    assert chosen in index.manifests
    assert chosen.platform is None or chosen.platform.architecture == host.architecture


@fuzzed(400)
@given(written(configs | anything))
def test_any_bytes_are_a_config_or_our_error(body: bytes) -> None:
    try:
        found = parse_config(body)
    except (ManifestInvalid, ImageUnsupported, TooLarge) as error:
        assert_tellable(error)
        return
    assert is_clean(found)
    for diff_id in found.rootfs.diff_ids:
        Digest.parse(diff_id)


# -- hosts.toml -------------------------------------------------------------------------------

toml_strings = (
    st.sampled_from(
        [
            "https://mirror.example", "http://127.0.0.1:5000/v2", "mirror.example:5000",
            "unix:///x", "https://u:p@h/", "https://h/?q", "https://[::1", "h:99999",
            "pull", "resolve", "ca.pem", "../../x", "a\0b", "", "https://h/#f", "x" * 9000,
            "\u0430.example",
            "localhost",
        ]
    )
    | texts
)  # fmt: skip
toml_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | toml_strings,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text("abA-_0", min_size=1, max_size=8) | toml_strings, inner, max_size=3
        )
    ),
    max_leaves=6,
)
tables = nearly(
    capabilities=st.lists(toml_strings, max_size=3),
    ca=toml_strings | st.lists(toml_strings, max_size=2),
    client=st.lists(st.lists(toml_strings, max_size=3), max_size=2),
    skip_verify=st.booleans(),
    override_path=st.booleans(),
    header=st.dictionaries(toml_strings, toml_strings | st.lists(toml_strings, max_size=2)),
).map(lambda table: {key: value for key, value in table.items() if value is not None})
files = st.fixed_dictionaries(
    {},
    optional={
        "server": toml_strings | toml_values,
        "host": st.dictionaries(toml_strings, tables, max_size=3) | toml_values,
        "capabilities": toml_values,
    },
)


def toml(value: object) -> str:
    """The value inline; what TOML cannot say (null) is a string."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value) if value == value and abs(value) < 2**63 else '"number"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            pairs = (f"{json.dumps(str(key))} = {toml(each)}" for key, each in value.items())
            return "{" + ", ".join(pairs) + "}"
        case _:
            return json.dumps(str(value))


@st.composite
def hosts_files(draw: st.DrawFn) -> bytes:
    document = draw(files)
    text = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in document.items())
    data = text.encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 7)):
        case 0 if data:
            at = draw(st.integers(0, len(data) - 1))
            data = data[:at] + draw(st.binary(max_size=4)) + data[at + 1 :]
        case 1:
            data = draw(st.binary(max_size=200))
        case 2:
            data = b"a = " + b"[" * draw(st.integers(0, 3000))
        case _:
            pass
    return data


@fuzzed(300)
@given(hosts_files(), st.sampled_from(["r.example", "docker.io", "r.example:5000", "localhost:5"]))
@example(b"a." * 20_000 + b"b = 1", "r.example")
@example(b"a = " + b"{b = " * 2000, "r.example")
@example(b"a = " + b"9" * 10_000, "r.example")
def test_any_hosts_file_gives_endpoints_or_names_its_fault(data: bytes, domain: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name, domain)
        directory.mkdir()
        (directory / "hosts.toml").write_bytes(data)
        (directory / "ca.pem").write_text("")
        try:
            found = HostsDirectory([Path(name)]).endpoints(domain)
        except HostsConfigInvalid as error:
            assert_tellable(error)
            return
    assert found
    for endpoint in found:
        assert endpoint.origin.scheme in ("http", "https")
        assert parse_url(f"{endpoint.origin}{endpoint.path}", what="x")[1] == endpoint.origin
        for pair in endpoint.headers:
            assert not set("".join(pair)) & set("\r\n\0")


# -- WWW-Authenticate, realms, redirects -------------------------------------------------------

challenge_pieces = st.sampled_from(
    [
        "Bearer", "Basic", "bearer", "Negotiate", " ", ",", "=", '"', "\\", 'realm="', "realm=",
        "https://auth.example/token", "http://169.254.169.254/", 'service="', 'scope="',
        "repository:a:pull,push", "\t", "\0", "\r\n", "abc==", 'error="', "\\" * 200, "," * 500,
        '"' * 99, "a" * 4000, "\xff", "\u212a",
    ]
)  # fmt: skip
header_values = st.lists(challenge_pieces | texts, max_size=12).map("".join)


@fuzzed(400)
@given(st.lists(header_values, max_size=4))
@example(["Bearer " + 'a="",' * 5000])
@example(['Basic realm="' + "\\" * 16_000])
@example(["," * 16_000] * 3)
def test_any_challenge_is_read_within_its_bounds(values: list[str]) -> None:
    challenges = ch.parse_challenges(values)
    assert len(challenges) <= ch.MAX_CHALLENGES
    assert all(len(one.parameters) <= ch.MAX_PARAMETERS for one in challenges)
    chosen = ch.choose(challenges)
    if isinstance(chosen, ch.BearerChallenge):
        scopes = ch.pull_scopes(chosen.scopes, "library/a")
        assert 1 <= len(scopes) <= 4
        assert all(len(scope) <= ch.MAX_SCOPE_CHARS for scope in scopes)


addresses = st.sampled_from(
    [
        "https://", "http://", "//", "/", "file://", "auth.example", "registry.example", "@", ":",
        "127.0.0.1", "[::1]", "[", "]", "0x7f.1", "169.254.169.254", "10.0.0.1", ":80", ":99999",
        "/token", "?", "#", "\\", "%00", "..", "\t", "\u2100", "u:p@", "localhost",
        "::ffff:1.2.3.4",
    ]
)  # fmt: skip
urls = st.lists(addresses | texts, max_size=8).map("".join)
REGISTRY = Origin("https", "registry.example", 443)


@fuzzed(500)
@given(urls)
def test_any_address_a_registry_names_is_refused_or_plain(text: str) -> None:
    def never(_origin: Origin) -> bool:
        return False

    for decide in (
        lambda: check_realm(text, registry=REGISTRY, is_plain_http_configured=never),
        lambda: parse_url(
            redirect_target(
                "https://registry.example/v2/a",
                text,
                registry=REGISTRY,
                is_plain_http_configured=never,
            ),
            what="x",
        )[1],
    ):
        try:
            target = decide()
        except RegistryProtocolError as error:
            assert_tellable(error)
            continue
        assert target.scheme == "https"
        assert target.host
        assert 0 < target.port < 65536
