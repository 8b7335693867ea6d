"""What the SELinux policy in the kernel says when it is asked: selinuxfs(5), mounted by init.

Its text is nowhere to be read, and files of the distribution may name what the policy has not:
Debian 12 ships an lxc_contexts with `container_t`, and no module that declares that type.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox.host.errors import NotFound
from sandbox.host.lsm_files import ETC, ContainerLabels, selinux_container_labels

#: The answer to an access question is six numbers (security/selinux/selinuxfs.c).
_ANSWER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class SelinuxPolicy:
    """The policy behind a selinuxfs; every method blocks briefly.

    Where a question cannot be put (no such file, not allowed to ask), the answer is yes: the
    kernel says the same again, and with the same words, when the label is used.
    """

    root: Path = Path("/sys/fs/selinux")

    def knows(self, label: str) -> bool:
        """Whether the parts of the label are declared, and may stand together."""
        try:
            self._ask("context", label)
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    def allows(self, process: str, file: str, permission: str) -> bool:
        """Whether processes with one label have a permission of class `file` on another label."""
        kind = self.root / "class/file"
        try:
            number = int((kind / "index").read_text())
            bit = int((kind / "perms" / permission).read_text()) - 1
            answer = self._ask("access", f"{process} {file} {number}")
            return bool(int(answer.split()[0], 16) >> bit & 1)
        except (OSError, ValueError, IndexError):
            return True

    def enforces(self) -> bool:
        """Whether it is enforced; else what it refuses is only logged."""
        try:
            return (self.root / "enforce").read_text().strip() != "0"
        except OSError:
            return True

    def _ask(self, name: str, question: str) -> str:
        """Write and read by one descriptor: the answer belongs to that."""
        descriptor = os.open(self.root / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(descriptor, question.encode())
            return os.read(descriptor, _ANSWER_BYTES).decode("ascii", "replace")
        finally:
            os.close(descriptor)


def container_labels(policy: SelinuxPolicy, etc: Path = ETC) -> ContainerLabels:
    """The labels that the distribution names for containers, when the policy knows them.

    Raises:
        NotFound: none are named, or the policy does not know them.
    """
    labels = selinux_container_labels(etc)
    if unknown := [label for label in dict.fromkeys(labels) if not policy.knows(label)]:
        raise NotFound(f"the policy in the kernel does not know {', '.join(unknown)}")
    return labels
