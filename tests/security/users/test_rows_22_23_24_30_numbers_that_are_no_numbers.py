"""Ids of a container: forms that elsewhere wrapped to 0 or were looked up as somebody else.

Row 22, CVE-2024-40635: a USER above 2^31-1 wrapped around, and could so become root.
Row 23, CVE-2026-46680: what could not be parsed as a number any more was looked up as a name.
Row 24, CVE-2016-3697: a number was taken for the name of an account.
Row 30, CVE-2026-30892: a command in a container ran as another user than the container.

Tried: images whose USER has each of the forms, and whose passwd and group have every such text as a
name of id 0, so that whoever looks it up gets root. Nothing of these may even be created. And real
numbers, whose account is named like another number, in the container and in commands in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.node import Node
from tests.kit.rights import of_container
from tests.kit.tars import Tar
from tests.security.conftest import Hostile

#: None of these is a number from 0 to 2^31-1 in ASCII digits, nor a name.
FORMS = (
    *("2147483648", "4294967295", "4294967296", "18446744073709551616", "9" * 32, "9" * 400),
    *("-1", "-0", "+0", "0x0", "1_0", "0.0", "1e0", " 0", "0 ", "\t0", "\u0660", "\uff10"),
    *("0\u200b", "a b", "-root", ".", "..", "root\n", "r\u00f6t", "root/x", ":", "0:"),
    *(":0", "0:0:0", "root:", ":root"),
    *("0:-1", "0:2147483648", "0:4294967296", "0: 0", "0:+0", "0:\u0660", "1000:0x0"),
)  # fmt: skip
PASSWD = "root:x:0:0:root:/root:/bin/sh\n" + "".join(
    f"{part}:x:0:0::/root:/bin/sh\n" for form in FORMS for part in form.split(":") if part
)
GROUP = "root:x:0:\n" + "".join(
    f"{part}:x:0:\n" for form in FORMS for part in form.split(":") if part
)
SLEEP = ["sleep", "1000"]


def files(passwd: str, group: str) -> Tar:
    return Tar().file("etc/passwd", passwd.encode()).file("etc/group", group.encode())


def refused(call: Callable[[], object]) -> bool:
    """Whether the call is refused as the wrong argument that it has."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    return False


def test_forms_of_an_image_that_are_refused(node: Node, hostile: Hostile) -> None:
    pod = node.run_pod()
    accepted = []
    for number, form in enumerate(FORMS):
        image = hostile.push(f"user-form-{number}", files(PASSWD, GROUP), user=form)
        node.pull(image)
        if not refused(partial(node.create, pod, f"c{number}", SLEEP, image=image)):
            accepted.append(form)
    assert not accepted
    assert not node.containers()


def test_names_of_a_request_that_are_refused(node: Node, hostile: Hostile) -> None:
    """run_as_username: digits are a number, and then the account of that number must be there."""
    passwd = PASSWD.replace("root:x:0:", "r:x:7:")
    image = hostile.push("every-form-is-root", files(passwd, GROUP))
    node.pull(image)
    pod = node.run_pod()
    names = ["1000", "root", *(form for form in FORMS if ":" not in form)]
    assert [
        name
        for number, name in enumerate(names)
        if not refused(partial(node.create, pod, f"c{number}", SLEEP, image=image, username=name))
    ] == []
    assert not node.containers()


def test_ids_of_a_request_that_are_refused(node: Node) -> None:
    pod = node.run_pod()
    accepted = []
    for value in (-1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)):
        accepted += [
            options
            for options in ({"user": value}, {"user": 1, "group": value}, {"groups": [value]})
            if not refused(partial(node.create, pod, "main", SLEEP, **options))
        ]
        for field in ("run_as_user", "run_as_group", "supplemental_groups"):
            config = node.pod_config("other")
            context = config.linux.security_context
            context.run_as_user.value = 1
            if field == "supplemental_groups":
                context.supplemental_groups.append(value)
            else:
                getattr(context, field).value = value
            if not refused(partial(node.run_config, config)):
                accepted.append({field: value})
    assert not accepted
    assert not node.containers()
    assert len(node.pods()) == 1


def test_contradictions_are_refused(node: Node) -> None:
    pod = node.run_pod()
    for options in ({"user": 1, "username": "root"}, {"group": 1}):
        assert refused(partial(node.create, pod, "main", SLEEP, **options))


@pytest.mark.parametrize(
    ("user", "options", "ids"),
    [
        ("2147483647:2147483647", {}, (2147483647, 2147483647, [2147483647])),
        ("0001000", {}, (1000, 4, [4, 77])),
        # An account *named* 1000 has id 0: the number is not its name.
        ("1000", {}, (1000, 4, [4, 77])),
        ("0", {"user": 1000}, (1000, 4, [4, 77])),
        ("0", {"user": 1000, "group": 99, "groups": [5, 6]}, (1000, 99, [99, 77, 5, 6])),
        ("1000", {"username": "person"}, (1000, 4, [4, 77])),
        # A number nobody has: no account lends it a group.
        ("4242", {}, (4242, 0, [0])),
        ("person:people", {}, (1000, 77, [77])),
    ],
)  # fmt: skip
def test_who_it_is_in_the_container_and_in_every_command(
    node: Node, hostile: Hostile, handler: str, user: str, options: dict[str, object],
    ids: tuple[int, int, list[int]],
) -> None:  # fmt: skip
    passwd = (
        "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n99:x:0:0::/root:/bin/sh\n"
        "person:x:1000:4::/home:/bin/sh\n"
    )
    group = "root:x:0:\n1000:x:0:1000\npeople:x:77:person\nx:x:0:4242,1000,0001000\n"
    image = hostile.push(f"named-{user.replace(':', '-')}", files(passwd, group), user=user)
    node.pull(image)
    pod = node.run_pod(handler=handler)
    container = node.run(pod, "main", SLEEP, image=image, **options)
    uid, gid, groups = ids
    told = node.status(container).user.linux
    assert (told.uid, told.gid) == (uid, gid)
    assert set(told.supplemental_groups) == set(groups)
    lines = _parsed(of_container(node, container))
    assert set(lines["Uid"]) == {uid}
    assert set(lines["Gid"]) == {gid}
    assert set(lines["Groups"]) == set(groups)
    # The files of a running container are its own to write; a command must not be looked up there.
    etc = Path(f"/proc/{node.container_pid(container)}/root/etc")
    for name in ("passwd", "group"):
        (etc / name).write_text(f"x:x:{uid}:0:{uid}:/:/bin/sh\n{uid}:x:0:0::/:/bin/sh\n")
    code, out, err = node.exec(
        container, "sh", "-c", "grep -E '^(Uid|Gid|Groups)' /proc/self/status"
    )
    assert (code, err) == (0, "")
    inside = _parsed(out)
    assert set(inside["Uid"]) == {uid}
    assert set(inside["Gid"]) == {gid}
    assert set(inside["Groups"]) == set(groups)


def test_group_named_like_a_number_of_the_container_is_refused(
    node: Node, hostile: Hostile
) -> None:
    """runc 1.1 would give the container group 0: it takes additional groups for names first."""
    image = hostile.push("group-4-is-root", files(PASSWD, "root:x:0:\n4:x:0:\n"))
    node.pull(image)
    pod = node.run_pod()
    for options in (
        {"user": 1, "group": 4},
        {"groups": [4]},
        {"groups": [4], "strict_groups": True},
    ):
        assert refused(partial(node.create, pod, "main", SLEEP, image=image, **options))
    assert node.create(pod, "main", SLEEP, image=image, groups=[5])


def test_status_announces_groups_policy(node: Node) -> None:
    features = node.runtime.Status(api.StatusRequest(), timeout=60).features
    assert features.supplemental_groups_policy


def _parsed(text: str) -> dict[str, list[int]]:
    lines = (line.split(":") for line in text.splitlines())
    return {
        name: [int(word) for word in words.split()]
        for name, words in lines
        if name in ("Uid", "Gid", "Groups")
    }
