import io
import json
import logging

import pytest

from sandbox.host.errors import NotFound
from sandbox.host.journal import VALUE_LIMIT, configure, get_logger, redact_text
from tests.fakes.clock import FakeClock


@pytest.fixture
def lines():
    """Configures, and gives back what was written since, one entry a line."""
    stream = io.StringIO()

    def take():
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text.splitlines()

    take.stream = stream
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield take
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def test_lines_for_people(lines):
    configure("info", stream=lines.stream)
    log = get_logger("sandbox.pods").bind(pod="p1")
    log.info("pod started", took_ms=3, name="a b", none=None, quote='"', path="/run/x")
    (line,) = lines()
    stamp, rest = line.split(" ", 1)
    assert stamp.endswith("Z")
    assert rest == (
        "info sandbox.pods: pod started pod=p1 took_ms=3 "
        'name="a b" none=null quote="\\"" path=/run/x'
    )


def test_lines_for_programs(lines):
    configure("debug", json=True, stream=lines.stream)
    get_logger("x").debug("event", count=3, ok=True, text="ä\n", raw=b"\xff")
    entry = json.loads(lines()[0])
    assert entry.pop("time")
    assert entry == {
        "level": "debug",
        "logger": "x",
        "event": "event",
        "count": 3,
        "ok": True,
        "text": "ä\n",
        "raw": "\\xff",
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_an_event_is_one_line_whatever_it_holds(lines, as_json):
    configure("info", json=as_json, stream=lines.stream)
    get_logger("x").warning("bad\nevent", text="a\nb\r\x00", error=NotFound("gone\nnow"))
    assert len(lines()) == 1


def test_levels_and_configuring_again(lines):
    configure("warning", stream=lines.stream)
    configure("warning", stream=lines.stream)
    log = get_logger("x")
    log.info("quiet")
    log.error("loud")
    assert len(lines()) == 1
    with pytest.raises(KeyError):
        configure("chatty")


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "registry_token",
        "identityToken",
        "authorization",
        "auth",
        "env",
        "container_env",
        "environment",
        "api_key",
        "Cookie",
        "secret_name",
        "passphrase",
    ],
)
def test_fields_that_hold_secrets_are_never_written(lines, name):
    configure("info", stream=lines.stream)
    get_logger("x").info("event", **{name: "hunter2"})
    assert "hunter2" not in lines()[0]


@pytest.mark.parametrize("name", ["envelope", "author", "authority", "compass"])
def test_fields_that_only_look_similar_are(lines, name):
    configure("info", stream=lines.stream)
    get_logger("x").info("event", **{name: "value"})
    assert f"{name}=value" in lines()[0]


def test_secrets_inside_text():
    text = "GET https://user:pw@host/v2/x?sig=abc&y=1 failed: Authorization: Bearer abcdefghijk"
    clean = redact_text(text)
    for secret in ("user", "pw", "abc", "abcdefghijk"):
        assert secret not in clean
    assert "https://" in clean
    assert "host/v2/x" in clean
    assert redact_text("no url at all") == "no url at all"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("invalid 'user:pw@host/x:1'", "invalid '[redacted]@host/x:1'"),
        ("http://a:b@h and c:d@h", "http://[redacted]@h and [redacted]@h"),
        ("busybox:1@sha256:0123", "busybox:1@sha256:0123"),
        ("host:5000/a/b:1@sha512:0123", "host:5000/a/b:1@sha512:0123"),
        ("podwright@host.service", "podwright@host.service"),
        ("at 10:30:00 by a@b", "at 10:30:00 by a@b"),
    ],
)
def test_user_parts_without_a_scheme(text, clean):
    assert redact_text(text) == clean


def test_a_secret_at_the_cut_is_not_shown(lines):
    configure("info", stream=lines.stream)
    for before in range(VALUE_LIMIT - 40, VALUE_LIMIT + 40):
        get_logger("x").info("event", value="x" * before + " https://user:hunter2@host/")
    assert "hunter" not in "".join(lines())


def test_long_values_are_cut(lines):
    configure("info", stream=lines.stream)
    get_logger("x").info("event", text="a" * 100_000)
    assert len(lines()[0]) < 5000


def test_an_error_brings_its_replay_line_and_its_trace(lines):
    configure("info", json=True, stream=lines.stream)
    try:
        raise NotFound("no container", hint="look", replay="crun state x", container="c1")
    except NotFound as error:
        get_logger("x").error("request failed", exc_info=True, error=error)
    entry = json.loads(lines()[0])
    assert entry["error"] == "no container (container=c1); look"
    assert entry["error_replay"] == "crun state x"
    assert "Traceback" in entry["trace"]


def test_what_libraries_log_looks_the_same(lines):
    configure("info", json=True, stream=lines.stream)
    logging.getLogger("grpc").warning("from %s", "elsewhere")
    entry = json.loads(lines()[0])
    assert (entry["logger"], entry["event"]) == ("grpc", "from elsewhere")


def test_steps_tell_their_time_and_let_the_error_through(lines):
    configure("debug", json=True, stream=lines.stream)
    clock = FakeClock()
    log = get_logger("x")
    with log.step("unpin", clock=clock, pod="p"):
        clock.sleep_blocking(0.25)
    with pytest.raises(NotFound), log.step("unpin", clock=clock):
        raise NotFound("gone")
    entries = [json.loads(line) for line in lines()]
    assert [(e["event"], e["level"]) for e in entries] == [
        ("unpin: started", "debug"),
        ("unpin: completed", "debug"),
        ("unpin: started", "debug"),
        ("unpin: failed", "warning"),
    ]
    assert entries[1]["took_ms"] == 250
    assert entries[1]["pod"] == "p"
    assert entries[3]["error"] == "gone"
