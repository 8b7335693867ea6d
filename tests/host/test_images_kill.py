"""SIGKILL of the daemon at any moment of pulls and removals; what the next one finds is whole."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imageservice.forms import LayerForm
from tests import probes
from tests.fakes.registry import FakeRegistry
from tests.host.image_node import image_node, layer_directories, leftovers, rootfs
from tests.kit.tars import Tar

pytestmark = pytest.mark.root

#: Pulls and removes two images that share a layer, for ever.
VICTIM = """
import asyncio, sys
from pathlib import Path
from tests.host.image_node import image_node

async def main(root, form, *names):
    async with image_node(root, layer_form=form) as service:
        print("open", flush=True)
        while True:
            await asyncio.gather(*(service.pull(name, None) for name in names))
            for name in names:
                await service.remove(name)

asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""
FILES = 300


def layer(name: str) -> bytes:
    made = Tar().directory(name)
    for number in range(FILES):
        made.file(f"{name}/f{number}", b"%d" % number * 200)
    return made.done()


@pytest.mark.cell("PI8", "RI1-RI3")
@pytest.mark.parametrize("form", ["indexed", "tree"])
async def test_killed_at_any_moment(tmp_path: Path, form: LayerForm) -> None:
    if form == "indexed" and (reason := probes.no_indexed_layers(tmp_path)):
        pytest.skip(reason)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with FakeRegistry() as registry:
        base = layer("base")
        for name in ("one", "two"):
            registry.add_image(name, "1", layers=[base, layer(name)])
        names = [registry.reference(f"{name}:1") for name in ("one", "two")]
        for _ in range(12):
            await _run_and_kill(tmp_path, form, names, chance.uniform(0.0, 0.6))
            async with image_node(tmp_path, killed=True, layer_form=form) as service:
                assert [p for p in leftovers(tmp_path) if "/staging/" in p] == []
                for image in service.list():
                    async with rootfs(service, image, tmp_path) as target:
                        own = image.repo_tags[0].split("/")[1].split(":")[0]
                        for part in ("base", own):
                            assert len(list((target / part).iterdir())) == FILES
                # What an interrupted pull has finished stays for the next try.
                assert len(layer_directories(tmp_path)) == len(service._snapshots.layers())
        async with image_node(tmp_path, layer_form=form) as service:
            for name in names:
                await service.pull(name, None)
            assert len(service.list()) == 2
            assert leftovers(tmp_path) == []
            for name in names:
                await service.remove(name)
            assert layer_directories(tmp_path) == []


async def _run_and_kill(root: Path, form: str, names: list[str], after_s: float) -> None:
    def run() -> None:
        argv = [sys.executable, "-c", VICTIM, str(root), form, *names]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"open\n"
            time.sleep(after_s)
            victim.kill()

    await asyncio.to_thread(run)
