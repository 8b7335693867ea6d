"""The floor of a step: what needs no root to be tried."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path

import pytest

from tests.kit.floor import FLOORS, legend
from tests.kit.floor_pull import pull_floor_ms
from tests.kit.measure import STEPS

IMAGE = "registry.localhost/bench/one:1"


def registry(root: Path, *layers: bytes) -> Path:
    """A directory as docker-registry has it, with one image."""
    place = root / "docker/registry/v2"

    def put(content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        (place / "blobs/sha256" / name[:2] / name).mkdir(parents=True)
        (place / "blobs/sha256" / name[:2] / name / "data").write_bytes(content)
        return f"sha256:{name}"

    manifest = {"layers": [{"digest": put(layer)} for layer in layers]}
    link = place / "repositories/bench/one/_manifests/tags/1/current/link"
    link.parent.mkdir(parents=True)
    link.write_text(put(json.dumps(manifest).encode()))
    return root


def test_layers_are_read_and_inflated_and_nothing_stays(tmp_path: Path) -> None:
    storage = registry(tmp_path, gzip.compress(b"a" * 3_000_000), gzip.compress(b"b"))
    before = set(Path("/var/tmp").iterdir())
    assert pull_floor_ms(storage, IMAGE, IMAGE) > 0
    assert not {p for p in set(Path("/var/tmp").iterdir()) - before if "floor" in p.name}


def test_what_is_no_layer_has_no_floor(tmp_path: Path) -> None:
    storage = registry(tmp_path, b"not gzip at all")
    with pytest.raises((zlib.error, OSError, ValueError, Exception), match=r".+"):
        pull_floor_ms(storage, IMAGE)


def test_every_step_of_a_life_says_what_its_floor_is() -> None:
    assert set(STEPS) < set(FLOORS)
    text = legend(["RunPodSandbox", "pull, 245 MB", "ListContainers"])
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == ["* RunPodSandbox", "* pull"]
