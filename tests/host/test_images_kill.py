"""SIGKILL of the daemon at any moment of pulls and removals; what the next one finds is whole."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.host.image_node import image_node, layer_directories, leftovers, rootfs
from tests.kit.tars import Tar

pytestmark = pytest.mark.root

#: Pulls and removes two images that share a layer, for ever.
VICTIM = """
import asyncio, sys
from pathlib import Path
from tests.host.image_node import image_node

async def main(root, *names):
    async with image_node(root) as service:
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


async def test_killed_at_any_moment(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with FakeRegistry() as registry:
        base = layer("base")
        for name in ("one", "two"):
            registry.add_image(name, "1", layers=[base, layer(name)])
        names = [registry.reference(f"{name}:1") for name in ("one", "two")]
        for _ in range(12):
            await _run_and_kill(tmp_path, names, chance.uniform(0.0, 0.6))
            async with image_node(tmp_path, killed=True) as service:
                assert [p for p in leftovers(tmp_path) if "/staging/" in p] == []
                for image in service.list():
                    async with rootfs(service, image, tmp_path) as target:
                        own = image.repo_tags[0].split("/")[1].split(":")[0]
                        for part in ("base", own):
                            assert len(list((target / part).iterdir())) == FILES
                chains = {diff_id for image in service.list() for diff_id in image.chain}
                assert len(layer_directories(tmp_path)) == len(chains)
        async with image_node(tmp_path) as service:
            for name in names:
                await service.pull(name, None)
            assert len(service.list()) == 2
            assert leftovers(tmp_path) == []


async def _run_and_kill(root: Path, names: list[str], after_s: float) -> None:
    def run() -> None:
        argv = [sys.executable, "-c", VICTIM, str(root), *names]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"open\n"
            time.sleep(after_s)
            victim.kill()

    await asyncio.to_thread(run)
