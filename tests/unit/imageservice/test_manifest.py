"""Documents are read one way or not at all; the platform choice is what Go's tools would choose."""

from __future__ import annotations

import json

import pytest

from imageservice.errors import (
    DigestInvalid,
    ImageUnsupported,
    ManifestInvalid,
    PlatformNotFound,
    TooLarge,
)
from imageservice.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_LAYERS,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
    select_platform,
)

DIGEST = "sha256:" + "0a" * 32


def pointer(**changes) -> dict:
    return {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 7, **changes}


def manifest(**changes) -> dict:
    base = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": pointer(),
        "layers": [pointer(size=9)],
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def index(*platforms: dict | None, **changes) -> dict:
    entries = [
        pointer(digest=f"sha256:{n:064x}", **({"platform": p} if p is not None else {}))
        for n, p in enumerate(platforms)
    ]
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **changes}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
@pytest.mark.parametrize("content_type", ["same", "", "application/json; charset=utf-8"])
def test_a_manifest_of_either_kind(media_type, content_type):
    sent = media_type if content_type == "same" else content_type
    parsed = parse_manifest(encoded(manifest(mediaType=media_type)), sent)
    assert isinstance(parsed, Manifest)
    assert parsed.config.size_bytes == 7
    assert [layer.digest for layer in parsed.layers] == [DIGEST]


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_INDEX])
def test_an_index_of_either_kind(media_type):
    parsed = parse_manifest(encoded(index({"os": "linux"}, mediaType=media_type)), media_type)
    assert isinstance(parsed, Index)


def test_the_media_type_may_be_left_out_of_an_oci_document():
    body = encoded(manifest(mediaType=...))
    assert isinstance(parse_manifest(body, OCI_MANIFEST), Manifest)
    assert isinstance(parse_manifest(body, ""), Manifest)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (manifest(manifests=[]), OCI_MANIFEST),
        (index({"os": "linux"}, layers=[]), OCI_INDEX),
        (index({"os": "linux"}, config=pointer()), ""),
        (manifest(), OCI_INDEX),
        (manifest(), DOCKER_MANIFEST),
        (manifest(mediaType=...), OCI_INDEX),
        (index({"os": "linux"}, mediaType=OCI_MANIFEST), ""),
        (manifest(schemaVersion=3), OCI_MANIFEST),
        (manifest(schemaVersion="2"), OCI_MANIFEST),
        (manifest(schemaVersion=...), OCI_MANIFEST),
        (manifest(config=...), OCI_MANIFEST),
        (manifest(layers=...), OCI_MANIFEST),
        (manifest(layers={}), OCI_MANIFEST),
        (manifest(layers=None), OCI_MANIFEST),
        (manifest(mediaType=7), ""),
        (manifest(layers=[pointer()] * (MAX_LAYERS + 1)), OCI_MANIFEST),
        ({"schemaVersion": 2}, ""),
        ([], ""),
        ("text", ""),
        (None, ""),
    ],
)
def test_contradictions_and_wrong_shapes_are_refused(document, content_type):
    with pytest.raises(ManifestInvalid):
        parse_manifest(encoded(document), content_type)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha256:../../x"},
        {"digest": "SHA256:" + "0a" * 32},
        {"digest": DIGEST.upper()},
        {"digest": DIGEST[:-1]},
        {"digest": DIGEST + "\0"},
        {"digest": "md5:" + "0" * 32},
        {"digest": ""},
        {"digest": None},
        {"size": -1},
        {"size": 1 << 41},
        {"size": 1 << 70},
        {"size": "7"},
        {"size": 7.5},
        {"size": None},
        {"urls": "x"},
    ],
)
@pytest.mark.parametrize("place", ["config", "layers", "manifests"])
def test_a_bad_pointer_anywhere_is_refused(place, changes):
    bad = pointer(**changes)
    document = {
        "config": manifest(config=bad),
        "layers": manifest(layers=[pointer(), bad]),
        "manifests": index(manifests=[bad]),
    }[place]
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(encoded(document), document["mediaType"])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        '{"schemaVersion":2,"schemaVersion":2,"config":C,"layers":[]}',
        '{"schemaVersion":2,"config":C,"layers":[],"layers":[C]}',
        '{"schemaVersion":2,"config":C,"layers":[],"Layers":[C]}',
        '{"schemaVersion":2,"config":C,"layers":[],"MANIFESTS":[C]}',
        '{"schemaVersion":2,"config":{"digest":"D","digest":"D","size":1},"layers":[]}',
        '{"schemaVersion":2,"config":{"digest":"D","Digest":"D","size":1},"layers":[]}',
        '{"schemaVersion":2,"config":C,"layers":[]}x',
        '{"schemaVersion":2,"config":C,"layers":[],"x":NaN}',
        '\ufeff{"schemaVersion":2,"config":C,"layers":[]}',
        "{" * 100_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "",
        "\0",
        '{"schemaVersion":2,"config":C,"layers":[],"x":' + "9" * 10_000 + "}",
    ],
)
def test_text_that_two_readers_could_read_differently_is_refused(text):
    body = text.replace("C", json.dumps(pointer())).replace('"D"', json.dumps(DIGEST))
    with pytest.raises(ManifestInvalid):
        parse_manifest(body.encode(), "")


def test_annotations_may_differ_in_case_alone():
    annotations = {"User": "a", "user": "b", "size": "1", "Size": "2"}
    parsed = parse_manifest(encoded(manifest(annotations=annotations)), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)


def test_bytes_that_are_no_utf_8_are_refused():
    with pytest.raises(ManifestInvalid):
        parse_manifest(b'{"schemaVersion":2,"x":"\xff"}', "")


def test_a_document_over_the_bound_is_not_even_parsed():
    with pytest.raises(TooLarge):
        parse_manifest(b"x" * (4 * 1024 * 1024 + 1), "")
    with pytest.raises(TooLarge):
        parse_config(b"x" * (4 * 1024 * 1024 + 1))


@pytest.mark.parametrize("part", [b"{},", b"[],", b'{"a":1},'])
def test_a_document_of_a_million_parts_is_not_even_parsed(part):
    body = b'{"schemaVersion":2,"x":[' + part * (1_000_000 // len(part)) + b"0]}"
    with pytest.raises(TooLarge, match="parts"):
        parse_manifest(body, "")
    with pytest.raises(TooLarge, match="parts"):
        parse_config(body)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, ""),
        ({"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (manifest(mediaType=...), "application/vnd.docker.distribution.manifest.v1+json"),
        (manifest(mediaType="application/vnd.cncf.helm.chart"), ""),
    ],
)
def test_schema_1_and_what_is_no_image_are_unsupported(document, content_type):
    with pytest.raises(ImageUnsupported):
        parse_manifest(encoded(document), content_type)


def test_a_descriptor_made_by_hand_is_checked_too():
    with pytest.raises(DigestInvalid):
        Descriptor(digest="x", size_bytes=1)
    with pytest.raises(ValueError, match="range"):
        Descriptor(digest=DIGEST, size_bytes=-1)


def test_a_config_is_cleaned_of_nulls():
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {
            "User": "www:grp",
            "Env": ["A=b"],
            "Entrypoint": None,
            "Cmd": ["sh", "-c", "x"],
            "Volumes": {"/data": {}, "/a": {}},
            "ExposedPorts": {"80/tcp": {}},
            "Labels": None,
            "WorkingDir": "/w",
            "StopSignal": "SIGQUIT",
            "OnBuild": None,
        },
        "history": None,
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    }
    config = parse_config(encoded(document))
    assert config.rootfs.diff_ids == (DIGEST,)
    assert config.config.user == "www:grp"
    assert config.config.entrypoint == ()
    assert config.config.cmd == ("sh", "-c", "x")
    assert config.config.volumes == ("/a", "/data")
    assert config.config.labels == {}
    assert config.config.stop_signal == "SIGQUIT"
    assert str(config.platform) == "linux/amd64"


def test_a_config_may_lack_nearly_everything():
    config = parse_config(b'{"config": null, "rootfs": null}')
    assert config.rootfs.diff_ids == ()
    assert config.config.env == ()


@pytest.mark.parametrize(
    "document",
    [
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:../x"]}},
        {"rootfs": {"type": "layers", "diff_ids": "x"}},
        {"config": {"Cmd": "sh"}},
        {"config": {"Env": [1]}},
        {"config": {"Volumes": ["/x"]}},
        [],
    ],
)
def test_a_config_of_wrong_types_is_refused(document):
    with pytest.raises(ManifestInvalid):
        parse_config(encoded(document))


def test_a_config_of_another_root_file_system_is_unsupported():
    with pytest.raises(ImageUnsupported):
        parse_config(b'{"rootfs": {"type": "layers+base", "diff_ids": []}}')


def linux(architecture: str, variant: str = "", **more) -> dict:
    return {"os": "linux", "architecture": architecture, "variant": variant, **more}


@pytest.mark.parametrize(
    ("offered", "machine", "chosen"),
    [
        ([linux("arm64"), linux("amd64")], "x86_64", 1),
        ([linux("amd64", "v3"), linux("amd64")], "x86_64", 1),
        ([linux("amd64", "v1")], "x86_64", 0),
        ([linux("arm64", "v8")], "aarch64", 0),
        ([linux("arm64")], "aarch64", 0),
        ([linux("arm", "v5"), linux("arm", "v7"), linux("arm", "v6")], "armv7l", 1),
        ([linux("arm", "v5"), linux("arm", "v7"), linux("arm", "v6")], "armv6l", 2),
        ([linux("arm")], "armv7l", 0),
        ([linux("386"), linux("amd64")], "i686", 0),
        ([{"os": "windows", "architecture": "amd64"}, linux("amd64")], "x86_64", 1),
        ([None, linux("amd64")], "x86_64", 1),
        ([linux("arm64"), None], "x86_64", 1),
        ([linux("amd64"), linux("amd64")], "x86_64", 0),
        ([linux("s390x")], "s390x", 0),
        ([{"os": "unknown", "architecture": "unknown"}, linux("amd64")], "x86_64", 1),
    ],
)
def test_platform_choice(offered, machine, chosen):
    parsed = parse_manifest(encoded(index(*offered)), OCI_INDEX)
    assert isinstance(parsed, Index)
    assert select_platform(parsed, Platform.host(machine)) == parsed.manifests[chosen]


@pytest.mark.parametrize(
    ("offered", "machine"),
    [
        ([], "x86_64"),
        ([linux("arm64")], "x86_64"),
        ([linux("amd64", "v2")], "x86_64"),
        ([linux("arm", "v7")], "armv6l"),
        ([linux("amd64")], "i686"),
        ([{"os": "windows", "architecture": "amd64"}], "x86_64"),
        ([{"os": "unknown", "architecture": "unknown"}], "x86_64"),
    ],
)
def test_no_platform_fits(offered, machine):
    parsed = parse_manifest(encoded(index(*offered)), OCI_INDEX)
    assert isinstance(parsed, Index)
    with pytest.raises(PlatformNotFound, match="linux/"):
        select_platform(parsed, Platform.host(machine))


def test_the_platforms_that_exist_are_told_but_not_all_of_ten_thousand():
    parsed = parse_manifest(encoded(index(*[linux(f"a{n}") for n in range(10_000)])), OCI_INDEX)
    assert isinstance(parsed, Index)
    with pytest.raises(PlatformNotFound) as caught:
        select_platform(parsed, Platform.host("x86_64"))
    assert "linux/a0" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_build_attestations_are_not_images():
    entry = pointer(annotations={"vnd.docker.reference.type": "attestation-manifest"})
    parsed = parse_manifest(encoded(index(manifests=[entry])), OCI_INDEX)
    assert isinstance(parsed, Index)
    with pytest.raises(PlatformNotFound):
        select_platform(parsed, Platform.host("x86_64"))


def test_this_machine_has_a_platform():
    assert Platform.host().os == "linux"
    assert Platform.host().architecture
