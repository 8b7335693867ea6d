"""Command line of hack/images: put the sets of the catalog into a registry's directory.

A stamp beside the storage holds a hash of everything that went in (recipes, programs, busybox), so
that a second run costs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.kit import pull_images
from tests.kit.catalog import PROGRAMS, Recipe
from tests.kit.catalog import SETS as CATALOG_SETS
from tests.kit.oci import Image
from tests.kit.registry import Pusher, running_registry, write_config, write_hosts

SETS: Final = {**CATALOG_SETS, "pull": pull_images.PULL}
#: What each set is made by; a set is made anew when one of these files changes.
_SOURCES: Final = ("catalog.py", "oci.py")
_MORE_SOURCES: Final = {"pull": ("pull_images.py",)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack/images")
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--set", dest="sets", action="append", choices=sorted(SETS))
    parser.add_argument("--certs-d", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    make_sets(options.storage, options.sets or ["first-pod", "critest"])
    if options.certs_d is not None:
        write_hosts(options.certs_d, options.port, ["registry.localhost"])
    if options.serve:
        config = options.storage / f"serve-{options.port}.yml"
        write_config(options.storage / "registry", options.port, config)
        os.execvp("docker-registry", ["docker-registry", "serve", str(config)])
    return 0


def make_sets(storage: Path, names: Iterable[str]) -> Path:
    """Make and push what is not there yet; returns the directory to serve."""
    storage.mkdir(parents=True, exist_ok=True)
    registry = storage / "registry"
    wanted = [name for name in names if not _is_fresh(storage, name)]
    if wanted:
        with (
            tempfile.TemporaryDirectory(prefix="podwright-kit-") as work,
            running_registry(registry, Path(work)) as port,
        ):
            for name in wanted:
                _push_set(port, name, SETS[name])
                _stamp(storage, name).write_text(_fingerprint(name))
    return registry


def _push_set(port: int, name: str, recipes: Iterable[Recipe]) -> None:
    pusher = Pusher(port)
    for recipe in recipes:
        print(f"making {', '.join(recipe.names)}", file=sys.stderr)
        image: Image = recipe.make()
        for full_name in recipe.names:
            pusher.push(image, full_name)
    pusher.close()


def _stamp(storage: Path, name: str) -> Path:
    return storage / f"stamp-{name}"


def _is_fresh(storage: Path, name: str) -> bool:
    stamp = _stamp(storage, name)
    return stamp.exists() and stamp.read_text() == _fingerprint(name)


def _fingerprint(name: str) -> str:
    busybox = shutil.which("busybox")
    sources = (*_SOURCES, *_MORE_SOURCES.get(name, ()))
    files = [*sorted(PROGRAMS.iterdir()), *(Path(__file__).with_name(n) for n in sources)]
    state = hashlib.sha256()
    for path in [*files, *([Path(busybox)] if busybox else [])]:
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
