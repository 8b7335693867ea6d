"""Who a container runs as."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import InvalidArgument
from sandbox.model import ContainerSecurity, PodSecurity, SupplementalGroupsPolicy
from sandbox.users import (
    FILE_LIMIT_BYTES,
    LINE_LIMIT_BYTES,
    MAX_ID,
    ResolvedUser,
    parse_number,
    resolve_pod_user,
    resolve_user,
)

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
short:line
www:x:1000:1001:web:/srv/www:/bin/sh
www:x:0:0:second line of the name:/:/bin/sh
1234:x:0:0:digits as a name:/:/bin/sh
big:x:4294967296:0::/:/bin/sh
minus:x:-1:0::/:/bin/sh
+0:x:0:0::/:/bin/sh
"""
GROUP = b"""root:x:0:
www:x:1001:
staff:x:50:someone,www
audio:x:29:www
wheel:x:10:wwwx,ww
bad:x:4294967295:badmember
"""


def resolve(image_user: str = "", **fields: object) -> ResolvedUser:
    return resolve_user(
        image_user,
        ContainerSecurity(**fields),  # type: ignore[arg-type]
        passwd=PASSWD,
        group=GROUP,
    )


def test_nothing_given_is_root() -> None:
    user = resolve()
    assert (user.uid, user.gid, user.additional_gids, user.home) == (0, 0, (0,), "/root")
    assert resolve_user("", ContainerSecurity(), passwd=None, group=None).uid == 0


def test_name_brings_its_groups_primary_first() -> None:
    user = resolve("www")
    assert user == ResolvedUser(
        uid=1000, gid=1001, additional_gids=(1001, 50, 29), home="/srv/www", username="www"
    )


def test_number_finds_the_line_of_its_number() -> None:
    assert resolve(run_as_user=1000) == resolve("www") == resolve("1000")


def test_number_is_never_a_name() -> None:
    """CVE-2016-3697: passwd has a line *named* 1234 with uid 0."""
    assert resolve("1234").uid == 1234
    assert resolve(run_as_user=1234).uid == 1234
    assert resolve("1234").gid == 0


def test_request_beats_image() -> None:
    assert resolve("0", run_as_user=1000).uid == 1000
    assert resolve("0", run_as_username="www").uid == 1000
    user = resolve("www:staff", run_as_user=7, run_as_group=8)
    assert (user.uid, user.gid, user.additional_gids) == (7, 8, (8,))


@pytest.mark.parametrize(
    ("text", "uid", "gid"),
    [("www:staff", 1000, 50), ("1000:staff", 1000, 50), ("www:7", 1000, 7), ("5:6", 5, 6)],
)
def test_image_user_with_group(text: str, uid: int, gid: int) -> None:
    user = resolve(text)
    assert (user.uid, user.gid, user.additional_gids[0]) == (uid, gid, gid)


@pytest.mark.parametrize(
    "text",
    [
        *("2147483648", "4294967295", "4294967296", "99999999999999999999", "9" * 5000),
        *("-1", "+0", " 0", "0 ", "0x0", "1_0", "\u0660", "0\n", "1e3", "1.0", "0o0", "²"),
        *("www\n", "ww w", "www\0", "wwẃ", "root:", ":", ":0", "0:", "a:b:c", "www:-1", "www:"),
        *("www:2147483648", "www:\u0660", "1www", "-www", "big", "minus", "nobody", "a" * 300),
        *("www:nogroup", "www:bad"),
    ],
)
def test_refused_forms(text: str) -> None:
    """CVE-2024-40635, CVE-2026-46680: also where passwd has a line of exactly that name."""
    line = text.split(":", maxsplit=1)[0].encode() + b":x:0:0::/:/bin/sh\n"
    passwd = PASSWD + (line if line.split(b":")[0] not in (b"www", b"root") else b"")
    if text == "nobody":
        passwd = PASSWD
    with pytest.raises(InvalidArgument):
        resolve_user(text, ContainerSecurity(), passwd=passwd, group=GROUP)


@pytest.mark.parametrize(
    "fields",
    [
        {"run_as_user": -1},
        {"run_as_user": 2**31},
        {"run_as_user": 2**32},
        {"run_as_user": 0, "run_as_group": 2**31},
        {"run_as_user": 0, "run_as_group": -1},
        {"run_as_group": 5},
        {"run_as_user": 0, "run_as_username": "root"},
        {"run_as_username": "nobody"},
        {"run_as_username": "777"},
        {"supplemental_groups": (2**32 - 1,)},
        {"supplemental_groups": (-5,)},
    ],
)
def test_refused_requests(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        resolve(**fields)


def test_message_shows_no_control_characters() -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve("evil\n\x1b[31m")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_merge_and_strict() -> None:
    merged = resolve("www", supplemental_groups=(7000, 50))
    assert merged.additional_gids == (1001, 50, 29, 7000)
    strict = resolve(
        "www",
        supplemental_groups=(7000,),
        supplemental_groups_policy=SupplementalGroupsPolicy.STRICT,
    )
    assert strict.additional_gids == (1001, 7000)


def test_group_of_a_member_without_usable_id_is_an_error() -> None:
    """Left out, it could give rights that a mode takes from the group."""
    passwd = b"badmember:x:5:5::/:/bin/sh\n"
    with pytest.raises(InvalidArgument, match="no usable id"):
        resolve_user("badmember", ContainerSecurity(), passwd=passwd, group=GROUP)
    strict = ContainerSecurity(supplemental_groups_policy=SupplementalGroupsPolicy.STRICT)
    assert resolve_user("badmember", strict, passwd=passwd, group=GROUP).additional_gids == (5,)


@pytest.mark.parametrize(
    "line",
    [
        *(b"1001:x:0:", b"1001:x:0:www", b" 1001:x:0:", b"1001:x:0:\r", b"\t1001:x:0:", b"1001"),
        *(b"1001:", b"1001:x", b"1001:x:", b"1001:x: 0:", b"1001:x:01001:", b"1001:x:-1:"),
        *(b"\xc2\xa01001:x:0:", b"\xc2\x851001:x:0:", b"7000:x:0:", b"50:x:0:", b"29:x:0:"),
    ],
)
def test_a_group_named_like_a_number_of_ours_is_refused(line: bytes) -> None:
    """runc 1.1 takes additional groups for names first."""
    for group in (GROUP + line + b"\n", line + b"\n" + GROUP, GROUP + line):
        security = ContainerSecurity(supplemental_groups=(7000,))
        with pytest.raises(InvalidArgument, match="another id"):
            resolve_user("www", security, passwd=PASSWD, group=group)


def test_other_groups_named_like_numbers_do_no_harm() -> None:
    group = GROUP + b"1001:x:1001:\n1002:x:0:\n01001:x:0:\n#1001:x:0:\nx:x:0:1001\n"
    user = resolve_user("www", ContainerSecurity(), passwd=PASSWD, group=group)
    assert user.additional_gids == (1001, 50, 29)


def test_files_of_many_lines_take_little_memory() -> None:
    content = b"ab\n" * 100_000
    tracemalloc.start()
    try:
        resolve_user("5:6", ContainerSecurity(), passwd=content, group=content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content)


def test_files_are_bounded() -> None:
    security = ContainerSecurity(run_as_username="www")
    for content in (
        b"x" * (LINE_LIMIT_BYTES + 1) + b"\n" + PASSWD,
        b"\n" * FILE_LIMIT_BYTES + PASSWD,
    ):
        with pytest.raises(InvalidArgument):
            resolve_user("", security, passwd=content, group=None)


def test_too_many_groups() -> None:
    lines = b"".join(b"g%d:x:%d:www\n" % (number, number) for number in range(70_000))
    with pytest.raises(InvalidArgument, match="groups"):
        resolve_user("www", ContainerSecurity(), passwd=PASSWD, group=lines)


@pytest.mark.parametrize("home", ["", "relative", "/a\r", "/a\x1b[0m"])
def test_unusable_home_is_the_root(home: str) -> None:
    passwd = f"u:x:5:5::{home}:/bin/sh\n".encode()
    assert resolve_user("u", ContainerSecurity(), passwd=passwd, group=None).home == "/"


def test_pod_user() -> None:
    assert resolve_pod_user(PodSecurity()).uid == 0
    user = resolve_pod_user(PodSecurity(run_as_user=5, run_as_group=6, supplemental_groups=(7, 6)))
    assert (user.uid, user.gid, user.additional_gids) == (5, 6, (6, 7))
    for bad in (PodSecurity(run_as_group=1), PodSecurity(run_as_user=-1)):
        with pytest.raises(InvalidArgument):
            resolve_pod_user(bad)


@given(st.text(max_size=12))
def test_only_ascii_digits_are_numbers(text: str) -> None:
    try:
        number = parse_number(text, "user")
    except InvalidArgument:
        return
    if number is None:
        assert text[0].isalpha() or text[0] == "_"
        assert text.isascii()
    else:
        assert set(text) <= set("0123456789")
        assert 0 <= number <= MAX_ID


@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from(["", "www", "5", "a:b"]))
def test_hostile_files_give_a_result_or_invalid_argument(
    passwd: bytes, group: bytes, text: str
) -> None:
    try:
        user = resolve_user(text, ContainerSecurity(), passwd=passwd, group=group)
    except InvalidArgument:
        return
    assert 0 <= user.uid <= MAX_ID
    assert user.additional_gids[0] == user.gid
    assert len(set(user.additional_gids)) == len(user.additional_gids)
