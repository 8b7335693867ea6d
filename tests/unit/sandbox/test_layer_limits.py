import pytest

from sandbox.host.errors import FailedPrecondition, InvalidArgument, Unsupported
from sandbox.layer_limits import ANNOTATION, LACKS, LEAST_BYTES, LayerLimits, asked_bytes

MIB = 1 << 20
OURS = ("podwright.io/*",)


def asked(text, *, most=0, patterns=OURS):
    return asked_bytes({}, {ANNOTATION: text}, patterns=patterns, most_bytes=most)


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("100K", 100_000), ("1Mi", MIB), ("2G", 2 * 10**9), ("3Gi", 3 << 30)],
)
def test_sizes(text, size):
    assert asked(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "1.5Mi",
        "1 Mi",
        "1mi",
        "1Ti",
        "0x10000",
        "+70000",
        "070000",
        "\u0667\u0660\u0660\u0660\u0660\u0660",
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(InvalidArgument, match=ANNOTATION):
        asked(text)


def test_less_than_a_layer_needs_and_more_than_is_allowed():
    with pytest.raises(InvalidArgument, match=str(LEAST_BYTES)):
        asked(str(LEAST_BYTES - 1))
    assert asked("1Mi", most=MIB) == MIB
    with pytest.raises(InvalidArgument):
        asked(str(MIB + 1), most=MIB)


def test_the_setting_is_for_every_container():
    assert asked_bytes({}, {}, patterns=(), most_bytes=0) == 0
    assert asked_bytes({}, {}, patterns=(), most_bytes=MIB) == MIB


def test_the_container_may_ask_for_other_than_its_pod():
    pod = {ANNOTATION: "1Mi"}
    assert asked_bytes(pod, {}, patterns=OURS, most_bytes=0) == MIB
    assert asked_bytes(pod, {ANNOTATION: "2Mi"}, patterns=OURS, most_bytes=0) == 2 * MIB


@pytest.mark.parametrize("patterns", [(), ("*",), ("podwright*",), ("podwright.io/other",)])
def test_an_annotation_that_is_not_let_through_is_not_looked_at(patterns):
    assert asked("1Mi", patterns=patterns) == 0
    assert asked("nonsense", patterns=patterns, most=5 * MIB) == 5 * MIB


@pytest.mark.parametrize("pattern", ["podwright.io/*", ANNOTATION, "podwright.io/writable-*"])
def test_patterns_that_let_it_through(pattern):
    assert asked("1Mi", patterns=(pattern,)) == MIB


@pytest.fixture
def without(tmp_path):
    """Limits on a file system that keeps no project quota."""
    from sandbox.host.project_quota import quota_state

    if quota_state(tmp_path).value == "enforced":
        pytest.skip("project quota is on for the directory of this test's files")

    def make(most_bytes):
        return LayerLimits(tmp_path, most_bytes=most_bytes, patterns={"crun": OURS})

    return make


async def test_a_daemon_that_cannot_keep_its_setting_does_not_start(without):
    with pytest.raises(FailedPrecondition, match="prjquota"):
        await without(MIB).open()


async def test_a_container_whose_limit_cannot_be_kept_is_refused(without, tmp_path):
    limits = without(0)
    await limits.open()
    with pytest.raises(Unsupported, match="prjquota"):
        await limits.apply("c1", "crun", {}, {ANNOTATION: "1Mi"})
    assert list(tmp_path.iterdir()) == []


async def test_without_a_limit_nothing_is_made(without, tmp_path):
    limits = without(0)
    await limits.open()
    await limits.apply("c1", "crun", {}, {})
    await limits.apply("c1", "runc", {}, {ANNOTATION: "1Mi"})
    await limits.sweep()
    limits.release("c1")
    assert limits.use("c1") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("driver", sorted(LACKS))
async def test_a_driver_that_keeps_no_limit_is_refused(tmp_path, driver):
    set_for_all = LayerLimits(tmp_path, most_bytes=1 << 20, patterns={})
    with pytest.raises(FailedPrecondition, match="cannot be kept"):
        set_for_all.hold_to(driver)
    asked = LayerLimits(tmp_path, most_bytes=0, patterns={"crun": ("podwright.io/*",)})
    asked.hold_to(driver)
    await asked.apply("c", "crun", {}, {})
    with pytest.raises(Unsupported, match="storage driver overlay"):
        await asked.apply("c", "crun", {}, {ANNOTATION: "1Mi"})
    assert not (tmp_path / "c").exists()
