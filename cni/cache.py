"""What each attachment was made with and what came of it, one file per pod and interface.

Written before ADD (arguments and configuration) and again after it (the result), so that DEL and
CHECK see what ADD saw. The caller keeps configuration and result with the pod as well; this copy
serves when that record was lost, and tells garbage collection which attachments are ours.

Not fsynced: the caller's database is, and the two fsyncs would cost as much as a plugin. After a
power cut a file may be missing or empty, which reads as "not there".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cni.attachment import Attachment, check_key
from sandbox.host.errors import NotFound, PodwrightError, map_os_errors
from sandbox.host.files import (
    make_private_dir,
    read_limited,
    remove_temporaries,
    write_atomic,
)
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from pathlib import Path

_log = get_logger(__name__)

#: Configuration and result are bounded by 1 MiB each; JSON in JSON can double that, and the pod's
#: annotations come on top.
RECORD_LIMIT_BYTES: Final = 8 * 1024 * 1024

_SUFFIX: Final = ".json"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment: arguments, configuration, and the result once there is one."""

    attachment: Attachment
    config: str
    result: str = ""


class AttachmentCache:
    """The records under one directory; every method blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "results"

    def tidy(self) -> None:
        """Remove what a killed daemon was just writing; before anything is saved.

        Raises:
            Denied: the file system is read-only.
        """
        remove_temporaries(self._directory)

    def save(self, record: Record) -> None:
        """Write or replace a record.

        Raises:
            InvalidArgument: pod id or interface name is not a plain word.
            ResourceExhausted, Denied: the file system's own reasons.
        """
        path = self._path(record.attachment.pod_id, record.attachment.interface)
        text = msgspec.json.encode(record)
        try:
            write_atomic(path, text, mode=0o600, durable=False)
        except NotFound:
            # The directory is made when it is first missed: an operator may wipe it at any time.
            make_private_dir(self._directory.parent)
            make_private_dir(self._directory)
            write_atomic(path, text, mode=0o600, durable=False)

    def load(self, pod_id: str, interface: str) -> Record | None:
        """The record of an attachment; None if there is none that can be read.

        Raises:
            InvalidArgument: pod id or interface name is not a plain word.
        """
        return self._read(self._path(pod_id, interface))

    def remove(self, pod_id: str, interface: str) -> None:
        """Forget an attachment; unknown is success.

        Raises:
            InvalidArgument: pod id or interface name is not a plain word.
            Denied: the file system is read-only.
        """
        path = self._path(pod_id, interface)
        with map_os_errors("saved network result cannot be removed"):
            path.unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """Every record that can be read, in no order."""
        try:
            paths = [p for p in self._directory.iterdir() if p.suffix == _SUFFIX]
        except OSError:
            return []
        records = (self._read(path) for path in paths)
        return [record for record in records if record is not None]

    def pod_ids(self) -> set[str]:
        """Pods that there is a record of, by the names of the files alone. Blocking."""
        try:
            names = [p.stem for p in self._directory.iterdir() if p.suffix == _SUFFIX]
        except OSError:
            return set()
        return {name.partition("-")[0] for name in names}

    def put_aside(self, pod_id: str) -> None:
        """Rename what there is about a pod, so that it is no record any more. Blocking."""
        for path in self._directory.glob(f"{pod_id}-*{_SUFFIX}"):
            path.rename(path.with_name(f"{path.name}.unreadable"))

    def _path(self, pod_id: str, interface: str) -> Path:
        check_key(pod_id, interface)
        return self._directory / f"{pod_id}-{interface}{_SUFFIX}"

    def _read(self, path: Path) -> Record | None:
        try:
            return msgspec.json.decode(read_limited(path, RECORD_LIMIT_BYTES), type=Record)
        except NotFound:
            return None
        except (PodwrightError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            # Not fatal: the caller has its own copy. It is said, because without that copy the
            # address of this pod stays reserved.
            _log.warning("saved network result unreadable", path=str(path), error=str(error))
            return None
