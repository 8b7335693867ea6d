"""Images that hack/bench --pull measures beside the two large ones of the catalog.

They are the shapes in which images meet a node: many small layers, a base that is there already,
and a node that starts with twenty images to pull. A module of its own, so that a change here makes
these images anew and not those that every test pulls.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Final

from tests.kit.catalog import BENCH, Recipe
from tests.kit.oci import Entry, Image, ImageConfig, Layer, make_image, make_layer

#: Layers of the image of small ones. Debian-based images of a language's ecosystem have 8 to 20;
#: 40 is what a long Dockerfile with a command a line comes to.
SMALL_LAYERS: Final = 40
#: Images pulled at once.
AT_ONCE: Final = 20

#: Sizes of an installed program's files, as in the catalog's large image.
_FILE_BYTES: Final = (1024, 4096, 8192, 16384, 51_000)


def _text(generator: random.Random, size_bytes: int) -> bytes:
    """Text that compresses three to four times, different for each generator."""
    words = [generator.randbytes(4).hex() for _ in range(2000)]
    lines: list[str] = []
    written = 0
    while written < size_bytes:
        line = " ".join(generator.choices(words, k=8)) + "\n"
        lines.append(line * 2)
        written += 2 * len(line)
    return "".join(lines).encode()[:size_bytes]


def _layer(name: str, *, files: int, sizes: Sequence[int], seed: int) -> Layer:
    generator = random.Random(seed)
    pool = _text(generator, max(256 * 1024, 4 * max(sizes)))

    def entries() -> Iterator[Entry]:
        yield Entry(name)
        for number in range(files):
            size = generator.choice(sizes)
            start = generator.randrange(len(pool) - size)
            yield Entry(f"{name}/file{number:04}", mode=0o644, content=pool[start : start + size])

    return make_layer(entries())


def _small_layers() -> Image:
    layers = [
        _layer(f"step{n:02}", files=25, sizes=(1024, 4096), seed=100 + n)
        for n in range(SMALL_LAYERS)
    ]
    return make_image(layers, ImageConfig(command=["/nothing"]))


def _on_large() -> Image:
    """The layers of the catalog's large image and a small one of its own on top."""
    own = _layer("own", files=100, sizes=_FILE_BYTES, seed=200)
    return make_image([*_large_layers(), own], ImageConfig(command=["/nothing"]))


def _large_layers() -> list[Layer]:
    """The very blobs of the catalog's image, or nothing would be shared."""
    [recipe] = [recipe for recipe in BENCH if recipe.names == ("bench/large:1",)]
    image = recipe.make()
    manifest = json.loads(image.manifests[image.top][1])
    config = json.loads(image.blobs[manifest["config"]["digest"]])
    return [
        Layer(blob=image.blobs[layer["digest"]], diff_id=diff_id)
        for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    ]


@cache
def _common() -> Layer:
    return _layer("common", files=300, sizes=_FILE_BYTES, seed=300)


def _one_of_many(number: int) -> Image:
    own = _layer(f"own{number}", files=250, sizes=_FILE_BYTES, seed=400 + number)
    return make_image([_common(), own], ImageConfig(command=["/nothing"]))


def at_once_name(number: int) -> str:
    """Name of one of the images that are pulled at once, without the registry."""
    return f"bench/at-once-{number}:1"


#: 40 layers of 25 files; the large image with a layer more; 20 images of two layers, 4 MB each, of
#: which one is common to all.
PULL: Final = (
    Recipe(("bench/small-layers:1",), _small_layers),
    Recipe(("bench/on-large:1",), _on_large),
    *(Recipe((at_once_name(n),), partial(_one_of_many, n)) for n in range(AT_ONCE)),
)
