"""Questions to a policy, over files as selinuxfs has them; test_selinux.py asks a real one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sandbox.host.errors import NotFound
from sandbox.host.selinux_policy import SelinuxPolicy, container_labels


class Answers(SelinuxPolicy):
    """A policy whose answers are given: text, or an error number."""

    __slots__ = ()

    def _ask(self, name: str, question: str) -> str:
        (self.root / f"asked-{name}").write_text(question)
        answer = (self.root / f"answer-{name}").read_text()
        if answer.startswith("errno "):
            raise OSError(int(answer.split()[1]), "refused")
        return answer


@pytest.fixture
def policy(tmp_path: Path) -> SelinuxPolicy:
    (tmp_path / "class/file/perms").mkdir(parents=True)
    (tmp_path / "class/file/index").write_text("6")
    (tmp_path / "class/file/perms/entrypoint").write_text("20")
    return Answers(tmp_path)


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ("a:b:c:s0", True),
        (f"errno {errno.EINVAL}", False),
        (f"errno {errno.EACCES}", True),
    ],
)
def test_a_label_is_known_unless_the_kernel_calls_it_invalid(
    policy: SelinuxPolicy, answer: str, known: bool
) -> None:
    (policy.root / "answer-context").write_text(answer)
    assert policy.knows("a:b:c:s0") is known
    assert (policy.root / "asked-context").read_text() == "a:b:c:s0"


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [
        ("80000 ffffffff 0 ffffffff 3 0", True),
        ("7ffff ffffffff 0 ffffffff 3 0", False),
        (f"errno {errno.EACCES}", True),
        ("", True),
    ],
)
def test_a_permission_is_a_bit_of_the_answer(
    policy: SelinuxPolicy, answer: str, allowed: bool
) -> None:
    (policy.root / "answer-access").write_text(answer)
    assert policy.allows("a:b:c:s0", "a:b:d:s0", "entrypoint") is allowed
    assert (policy.root / "asked-access").read_text() == "a:b:c:s0 a:b:d:s0 6"
    assert policy.allows("a:b:c:s0", "a:b:d:s0", "of_a_newer_policy")


def test_without_a_selinuxfs_nothing_is_refused(tmp_path: Path) -> None:
    policy = SelinuxPolicy(tmp_path / "none")
    assert policy.knows("a:b:c:s0")
    assert policy.allows("a:b:c:s0", "a:b:d:s0", "entrypoint")
    assert policy.enforces()


def test_labels_for_containers_must_be_known(policy: SelinuxPolicy, tmp_path: Path) -> None:
    contexts = tmp_path / "etc/selinux/targeted/contexts"
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text('process = "a:b:c:s0"\nfile = "a:b:d:s0"\n')
    (policy.root / "answer-context").write_text("a:b:c:s0")
    assert container_labels(policy, tmp_path / "etc").process == "a:b:c:s0"
    (policy.root / "answer-context").write_text(f"errno {errno.EINVAL}")
    with pytest.raises(NotFound, match="does not know a:b:c:s0, a:b:d:s0"):
        container_labels(policy, tmp_path / "etc")
