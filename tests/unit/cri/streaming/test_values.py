"""Settings, targets, verdicts: the small values."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming.settings import StreamingSettings
from cri.streaming.targets import AttachTarget, ExecTarget, PortForwardTarget
from cri.streaming.verdict import SizeReader, Verdict, status_json, status_text
from sandbox.host.errors import InvalidArgument


def test_defaults_are_loopback_without_tls():
    settings = StreamingSettings()
    assert settings.listen() == ("127.0.0.1", 0)
    assert settings.tls == "off"
    assert settings.idle_timeout_s == 4 * 3600


@pytest.mark.parametrize(
    ("address", "expected"),
    [("[::1]:10250", ("::1", 10250)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("::1:5", ("::1", 5))],
)
def test_addresses(address, expected):
    assert StreamingSettings(address=address).listen() == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"address": "localhost:1"},
        {"address": "127.0.0.1"},
        {"address": "127.0.0.1:65536"},
        {"address": "127.0.0.1:-1"},
        {"address": "127.0.0.1:٣"},
        {"address": ""},
        {"tls": "pair"},
        {"tls": "pair", "tls_cert": Path("/c")},
        {"tls": "off", "tls_cert": Path("/c"), "tls_key": Path("/k")},
        {"token_life_s": 0.0},
        {"idle_timeout_s": 0.0},
    ],
)
def test_settings_that_could_only_fail_later(fields):
    with pytest.raises(InvalidArgument):
        StreamingSettings(**fields)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExecTarget(container_id="c", command=()),
        lambda: ExecTarget(container_id="c", command=("",), stdout=True),
        lambda: ExecTarget(container_id="c", command=("sh",)),
        lambda: ExecTarget(container_id="c", command=("sh",), tty=True, stdout=True, stderr=True),
        lambda: AttachTarget(container_id="c"),
        lambda: AttachTarget(container_id="c", tty=True, stderr=True),
        lambda: PortForwardTarget(pod_id="p", ports=(0,)),
        lambda: PortForwardTarget(pod_id="p", ports=(65536,)),
        lambda: PortForwardTarget(pod_id="p", ports=(-1,)),
        lambda: PortForwardTarget(pod_id="p", ports=(80,) * 101),
    ],
)
def test_targets_that_mean_nothing(make):
    with pytest.raises(InvalidArgument):
        make()


def test_success_as_a_document_and_as_text():
    for verdict in (Verdict(), Verdict(exit_code=0)):
        assert json.loads(status_json(verdict)) == {"metadata": {}, "status": "Success"}
        assert status_text(verdict) == b""


def test_an_exit_code_is_where_kubectl_looks_for_it():
    document = json.loads(status_json(Verdict(exit_code=42)))
    assert document["status"] == "Failure"
    assert document["reason"] == "NonZeroExitCode"
    assert document["details"]["causes"] == [{"reason": "ExitCode", "message": "42"}]
    assert status_text(Verdict(exit_code=42)) == b"command terminated with exit code 42"


def test_a_failure_of_ours():
    document = json.loads(status_json(Verdict(failure="no such thing " * 1000)))
    assert (document["status"], document["reason"], document["code"]) == (
        "Failure",
        "InternalError",
        500,
    )
    assert len(document["message"]) <= 2048
    assert status_text(Verdict(failure="no such thing")) == b"no such thing"


sizes = st.tuples(st.integers(1, 65_535), st.integers(1, 65_535))


def messages(wanted, separator):
    return separator.join(
        json.dumps({"Width": width, "Height": height}).encode() for width, height in wanted
    )


@given(st.lists(sizes, max_size=5), st.sampled_from([b"", b"\n", b" \r\n"]), st.data())
def test_sizes_however_they_are_cut(wanted, separator, data):
    text = messages(wanted, separator)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    reader = SizeReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += reader.feed(text[start:end])
    assert found == wanted


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_sizes_from_garbage_never_raise_and_are_the_same_cut_or_whole(garbage, cut):
    whole = SizeReader().feed(garbage)
    reader = SizeReader()
    assert reader.feed(garbage[:cut]) + reader.feed(garbage[cut:]) == whole
    assert all(0 < number <= 65_535 for size in whole for number in size)


@pytest.mark.parametrize(
    "text",
    [
        b'{"Width":0,"Height":24}',
        b'{"Width":-1,"Height":24}',
        b'{"Width":2147483648,"Height":24}',
        b'{"Width":65536,"Height":24}',
        b'{"Width":"80","Height":24}',
        b'{"Width":80}',
        b"null",
        b"{" * 5000,
    ],
)
def test_what_is_no_size_is_passed_over(text):
    reader = SizeReader()
    assert reader.feed(text) == []
    assert len(reader._rest) <= 256
    assert reader.feed(b'\n{"Width":80,"Height":24}') == [(80, 24)]
