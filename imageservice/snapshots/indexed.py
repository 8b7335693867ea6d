"""Layers kept as a tar and an EROFS index over it: mounting them, and whether this kernel can.

The kernel takes the two files themselves, without loop devices (Linux 6.12, CONFIG_EROFS_FS and
EROFS_FS_BACKED_BY_FILE): 0.1 ms a mount. mount(8) would make loop devices of them, so the system
call is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imageservice.digest import Digest
from imageservice.forms import INDEX_NAME, TAR_NAME
from imageservice.unpack.erofs import write_index
from imageservice.unpack.layer_tree import LayerTree
from sandbox.host.errors import PodwrightError, map_os_errors
from sandbox.host.files import remove_tree
from sandbox.host.journal import get_logger
from sandbox.host.mounts import Mount, mount_one, unmount

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)
_READ_BYTES: Final = 1 << 20


def mount_index(layer: Path, target: Path, *, syscalls: Syscalls) -> None:
    """Mount the layer in the directory `layer` at `target`, read-only. Blocking.

    Raises:
        Unsupported, InvalidArgument: this kernel cannot.
        Corrupt, NotFound, ...: as the kernel says.
    """
    options = ("ro", f"device={layer / TAR_NAME}")
    mount_one(Mount("erofs", str(layer / INDEX_NAME), target, options), syscalls=syscalls)


def is_whole(layer: Path, diff_id: str, index_digest: str) -> bool:
    """Whether both files hold what was committed: the tar's digest is the layer's name. Blocking.

    Hashing goes at some 600 MB/s and holds no lock of the interpreter.
    """
    for name, digest in ((TAR_NAME, diff_id), (INDEX_NAME, index_digest)):
        expected = Digest.parse(digest)
        hasher = expected.hasher()
        try:
            with (layer / name).open("rb", buffering=0) as file:
                while chunk := file.read(_READ_BYTES):
                    hasher.update(chunk)
        except OSError:
            return False
        if hasher.hexdigest() != expected.hex:
            return False
    return True


def probe_indexed(directory: Path, syscalls: Syscalls) -> str:
    """Empty where layers can be indexed, else why not; blocking.

    Args:
        directory: made, used and removed; on the file system that will hold the layers.
        syscalls: the kernel.
    """
    remove_tree(directory)
    layer, target = directory / "layer", directory / "target"
    try:
        with map_os_errors("cannot make probe directories", path=str(directory)):
            for path in (directory, layer, target):
                path.mkdir(0o700)
            empty = b"".join(
                write_index(LayerTree(max_entries=1).root, tar_bytes=1024, uuid=bytes(16))
            )
            (layer / INDEX_NAME).write_bytes(empty)
            (layer / TAR_NAME).write_bytes(bytes(1024))
        mount_index(layer, target, syscalls=syscalls)
        unmount(target, syscalls=syscalls)
    except PodwrightError as error:
        _log.debug("layers cannot be indexed here", error=error)
        return str(error)
    finally:
        remove_tree(directory)
    return ""
