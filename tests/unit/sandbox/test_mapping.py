"""What a user namespace may be, and who is who in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from sandbox.host.errors import InvalidArgument
from sandbox.host.idmap import IdMap, IdRange
from sandbox.mapping import check_mapped, id_map, own_user_namespace
from sandbox.model import (
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    PodSandbox,
    PodSecurity,
    UserNamespace,
)
from sandbox.paths import Paths
from sandbox.states import PodState
from tests.kit.spec_inputs import POD


def line(host_id: int, container_id: int = 0, length: int = 65_536) -> tuple[IdMapping, ...]:
    return (IdMapping(host_id=host_id, container_id=container_id, length=length),)


def user(
    uids: tuple[IdMapping, ...],
    gids: tuple[IdMapping, ...] | None = None,
    mode: NamespaceMode = NamespaceMode.POD,
) -> UserNamespace:
    return UserNamespace(mode=mode, uids=uids, gids=uids if gids is None else gids)


def test_the_nodes_own_is_none() -> None:
    for asked in (None, UserNamespace(mode=NamespaceMode.NODE)):
        assert own_user_namespace(NamespaceOptions(user=asked)) is None


def test_users_and_groups_may_differ() -> None:
    asked = user(line(100_000), line(300_000))
    assert own_user_namespace(NamespaceOptions(user=asked)) == asked


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (user(()), "one line of uids, not 0"),
        (user(line(1) + line(2)), "one line of uids, not 2"),
        (user(line(1), ()), "one line of gids, not 0"),
        (user(line(1), line(1) + line(2)), "one line of gids, not 2"),
        (user(line(1, container_id=1)), "uids of a user namespace must map root"),
        (user(line(1), line(1, container_id=9)), "gids of a user namespace must map root"),
        (user(line(0)), "uids of a user namespace must not map the node's root"),
        (user(line(1), line(0)), "gids of a user namespace must not map the node's root"),
        (user(line(1, length=0)), "map nothing"),
        (user(line(1), mode=NamespaceMode.CONTAINER), "CONTAINER means nothing"),
        (user(line(1), mode=NamespaceMode.TARGET), "TARGET means nothing"),
        (user(line(1), mode=NamespaceMode.NODE), "takes no mappings"),
    ],
)
def test_refused_in_words_that_say_why(asked: UserNamespace, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        own_user_namespace(NamespaceOptions(user=asked))


def test_only_who_exists_inside_can_be_run_as() -> None:
    asked = IdMap(IdRange(0, 100_000, 10), IdRange(0, 100_000, 20), Path("/pin"))
    check_mapped(asked, 9, (19, 0))
    with pytest.raises(InvalidArgument, match="user 10 does not exist"):
        check_mapped(asked, 10, ())
    with pytest.raises(InvalidArgument, match="group 20 does not exist"):
        check_mapped(asked, 0, (0, 20))


def test_numbers_and_place_of_a_pods_mapping() -> None:
    paths = Paths(run_root=Path("/run/x"))
    security = PodSecurity(
        namespaces=NamespaceOptions(user=user(line(100_000, length=10), line(300_000, length=10)))
    )
    pod = PodSandbox(id="ab", config=POD, state=PodState.READY, created_at_ns=1)
    assert id_map(pod, paths) is None
    pod = replace(pod, config=replace(POD, security=security))
    ids = id_map(pod, paths)
    assert ids is not None
    assert ids.root == (100_000, 300_000)
    assert ids.owner(3, 4) == (100_003, 300_004)
    assert ids.word == "X-mount.idmap=/run/x/namespaces/ab/user"
