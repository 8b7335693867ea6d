import asyncio
import io
import json
import subprocess
import sys
import tarfile
import threading
import tomllib

import pytest
from click.testing import CliRunner

from cri.cli import main
from cri.rpc.service import build_methods
from cri.server import RpcServer
from imageservice.progress import Progress, Stage
from sandbox.host.clock import SystemClock
from sandbox.host.errors import Corrupt, NotFound
from sandbox.model import PodConfig, PodMetadata
from tests.fakes.daemon import (
    FakeContainers,
    FakeEvents,
    FakeImage,
    FakeImages,
    FakeNode,
    FakePods,
    FakeUsages,
    RecordingObserver,
)
from tests.fakes.streaming import FakeStreaming


@pytest.fixture
def run(tmp_path):
    """Runs the command with an empty configuration and a socket of its own."""
    config = tmp_path / "config.toml"
    config.write_text("")

    def call(command, *words, text=""):
        at = ["--config", str(config)]
        if command not in {"serve", "check", "config", "version"}:
            at += ["--socket", str(tmp_path / "s")]
        return CliRunner().invoke(main, [command, *at, *words], input=text)

    call.config = config
    return call


class Served:
    """A daemon of fakes in a thread of its own, because the command line blocks."""

    def __init__(self, socket):
        self.socket = socket
        self.pods = FakePods()
        self.containers = FakeContainers()
        self.images = FakeImages()
        self.node = FakeNode()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        methods = build_methods(
            pods=self.pods,
            containers=self.containers,
            images=self.images,
            node=self.node,
            usages=FakeUsages(),
            streaming=FakeStreaming(),
            events=FakeEvents(),
            clock=SystemClock(),
            version="1.2.3",
        )
        server = RpcServer(
            methods, socket_path=self.socket, observer=RecordingObserver(), clock=SystemClock()
        )
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.stop(None)


@pytest.fixture
def daemon(tmp_path):
    with Served(tmp_path / "s") as served:
        yield served


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("cri.cli", {"grpc", "google.protobuf", "rich", "h11", "asyncio"}),
        # What only a YAML file or a command by hand needs.
        ("cri.daemon", {"yaml", "rich", "pyroute2"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module, heavy):
    probe = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""


def test_fork_support_of_grpc_is_off_before_grpc_is_there():
    probe = "import cri.cli, os; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    found = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "false"


def test_grpc_knows_the_way_of_listening_that_is_turned_off():
    probe = """
import cri.cli, os
assert os.environ["GRPC_EXPERIMENTS"] == "-event_engine_listener"
import grpc
grpc.server(None).stop(None)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_version():
    assert CliRunner().invoke(main, ["version"]).output.startswith("podwright ")


def test_printed_configuration_can_be_read_again_and_names_origins(run):
    run.config.write_text('[cni]\nip_pref = "ipv6"\n[runtimes.kata]\npath = "/usr/bin/kata"\n')
    result = run("config", "--set", "daemon.log_level=debug")
    assert result.exit_code == 0, result.output
    document = tomllib.loads(result.output)
    assert document["cni"]["ip_pref"] == "ipv6"
    assert document["runtimes"]["kata"]["path"] == "/usr/bin/kata"
    assert document["runtimes"]["crun"]["options"] == []
    assert f'ip_pref = "ipv6"  # {run.config}:2' in result.output
    assert 'log_level = "debug"  # flag' in result.output
    run.config.write_text(result.output)
    again = tomllib.loads(run("config").output)
    assert again == document


def test_settings_are_explained(run):
    result = run("config", "--help-settings")
    assert "# family of a pod's first address" in result.output
    assert "may be reloaded" in result.output


def test_a_valid_configuration_prints_nothing(run):
    result = run("config", "--validate")
    assert (result.exit_code, result.output) == (0, "")


def test_every_problem_of_a_configuration_is_printed(run):
    run.config.write_text("[cni]\nconf_dri = 1\npoll_s = -1\n")
    for command in ("config", "serve", "check"):
        result = run(command)
        assert result.exit_code == 1
        assert "did you mean conf_dir?" in result.output
        assert "expected 0 to" in result.output


@pytest.mark.parametrize("text", ["a", "a.b", "=1", "log_level=debug"])
def test_overrides_need_their_form(run, text):
    result = run("config", "--set", text)
    assert result.exit_code == 2
    assert "SECTION.KEY=VALUE" in result.output


def test_no_daemon_is_said_plainly(run):
    for words in (("status",), ("pull", "busybox")):
        result = run(*words)
        assert result.exit_code == 1
        assert "no daemon answers on the socket" in result.output
        assert "podwright serve" in result.output


def test_status_counts_by_state(run, daemon):
    for number, state in enumerate(("READY", "READY", "NOT_READY")):
        metadata = PodMetadata(name=str(number), uid="u", namespace="n")
        pod_id = asyncio.run(daemon.pods.run(PodConfig(metadata=metadata), ""))
        if state != "READY":
            asyncio.run(daemon.pods.stop(pod_id))
    daemon.images.add(FakeImage("sha256:1"), "busybox")
    result = run("status", "--json")
    report = json.loads(result.output)
    assert report["pods"] == {"notready": 1, "ready": 2}
    assert report["containers"] == {}
    assert report["images"] == 1
    assert report["conditions"] == {"NetworkReady": False, "RuntimeReady": True}
    assert result.exit_code == 1  # the network is not ready
    text = run("status").output
    assert "podwright 1.2.3" in text
    assert "NetworkReady: no NetworkPluginNotReady: no configuration" in text
    assert "pods: 1 notready, 2 ready" in text


def test_pull_draws_layers_and_prints_the_id(run, daemon):
    daemon.images.add(FakeImage("sha256:1"), "busybox")
    daemon.images.progress = [
        Progress("sha256:abcdef0123456789", Stage.FETCHING, 512, 1024),
        Progress("sha256:abcdef0123456789", Stage.DONE, 1024, 1024),
    ]
    result = run("pull", "busybox", "--username", "u", "--password-stdin", text="p\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "sha256:1\n"
    assert "abcdef012345" in result.stderr
    assert "done" in result.stderr
    [(_, image, shown)] = daemon.images.calls
    assert (image, shown.username, shown.password) == ("busybox", "u", "p")


def test_images_are_listed_by_name(run, daemon):
    daemon.images.add(
        FakeImage(
            "sha256:" + "a" * 64,
            repo_tags=("ghcr.io/a/b:1", "ghcr.io/a/b:2"),
            repo_digests=("ghcr.io/a/b@sha256:" + "b" * 64, "quay.io/c@sha256:" + "c" * 64),
            size_bytes=5_000_000,
            pinned=True,
        )
    )
    daemon.images.add(FakeImage("sha256:" + "d" * 64))
    lines = run("images").output.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["ghcr.io/a/b:1", "a" * 12, "5.0", "MB", "pinned"],
        ["ghcr.io/a/b:2", "a" * 12, "5.0", "MB", "pinned"],
        ["quay.io/c:<none>", "a" * 12, "5.0", "MB", "pinned"],
        ["<none>", "d" * 12, "1", "byte"],
    ]
    assert "sha256:" + "b" * 64 in run("images", "--digests").output
    first, second = json.loads(run("images", "--json").output)
    assert (first["pinned"], first["size_bytes"]) == (True, 5_000_000)
    assert first["additional_stores"] == ""

    assert second["tags"] == []


def test_images_of_additional_stores_are_told_by_their_path(run, daemon):
    daemon.images.add(FakeImage("sha256:" + "a" * 64, ("a/b:1",), stores=("/mnt/x",)))
    head, line = run("images").output.splitlines()
    assert head.split()[-2:] == ["ADDITIONAL", "STORE"]
    assert line.split()[-1] == "/mnt/x"


def test_removing_says_which_image_was_not_there_and_removes_the_others(run, daemon):
    daemon.images.add(FakeImage("sha256:1"), "a")
    result = run("rmi", "b", "a")
    assert result.exit_code == 1
    assert result.stdout == "sha256:1\n"
    assert "not on this node: b" in result.stderr
    assert daemon.images.calls == [("remove", "sha256:1")]


def test_an_archive_is_sent_whole_and_its_images_are_printed(run, daemon, tmp_path):
    daemon.images.add(FakeImage("sha256:1", repo_tags=("docker.io/library/a:1",)))
    daemon.images.progress = [Progress("sha256:abcdef0123456789", Stage.DONE, 10, 10)]
    archive = tmp_path / "a.tar"
    archive.write_bytes(bytes(range(256)) * 20_000)
    result = run("load", "-i", str(archive), "--name", "a:1", "--pin")
    assert result.exit_code == 0, result.output
    assert result.stdout == "sha256:1 docker.io/library/a:1\n"
    assert daemon.images.calls == [("load", archive.read_bytes(), "a:1", True)]


def test_a_directory_is_sent_as_a_tar_of_its_plain_files(run, daemon, tmp_path):
    layout = tmp_path / "layout"
    (layout / "blobs").mkdir(parents=True)
    (layout / "blobs/b").write_bytes(b"x" * 700)
    (layout / "index.json").write_text("{}")
    (layout / "link").symlink_to("/etc/hostname")
    daemon.images.add(FakeImage("sha256:1"))
    assert run("load", "-i", str(layout)).exit_code == 0
    [(_, data, _, _)] = daemon.images.calls
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["blobs/b", "index.json"]
        assert tar.extractfile("blobs/b").read() == b"x" * 700


def test_a_load_that_fails_says_why(run, daemon, tmp_path):
    daemon.images.fail["load"] = Corrupt("archive is not one")
    (tmp_path / "a").write_bytes(b"x")
    result = run("load", "-i", str(tmp_path / "a"))
    assert result.exit_code == 1
    assert "Error: archive is not one" in result.output
    result = run("load", "-i", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert "cannot read archive" in result.output


def test_a_saved_archive_is_there_whole_or_not_at_all(run, daemon, tmp_path):
    target = tmp_path / "out.tar"
    assert run("save", "a", "b", "-o", str(target), "--format", "docker").exit_code == 0
    assert daemon.images.calls == [("save", ("a", "b"), "docker")]
    whole = target.read_bytes()
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["document"]
    assert run("save", "a").stdout_bytes == whole
    daemon.images.fail["save"] = NotFound("no such image")
    assert run("save", "c", "-o", str(target)).exit_code == 1
    assert target.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_pins_are_set_and_cleared(run, daemon):
    assert run("pin", "a").exit_code == 0
    assert run("unpin", "a").exit_code == 0
    assert daemon.images.calls == [("pin", "a", True), ("pin", "a", False)]


def test_a_pull_that_fails(run, daemon):
    daemon.images.fail["pull"] = NotFound("no such image", image="nope")
    result = run("pull", "nope")
    assert result.exit_code == 1
    assert "Error: no such image (image=nope)" in result.output


def test_a_user_name_needs_a_password_from_standard_input(run):
    result = run("pull", "busybox", "--username", "u")
    assert result.exit_code == 1
    assert "belong together" in result.output


def test_serve_says_what_ended_it(run, tmp_path):
    (tmp_path / "run").write_text("not a directory")
    roots = ["--run-root", str(tmp_path / "run"), "--state-root", str(tmp_path / "state")]
    # In a process of its own: the daemon sets umask, signals and logging of its process.
    command = [sys.executable, "-m", "cri", "serve", "--config", str(run.config), *roots]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Error: " in result.stderr
    assert str(tmp_path / "run") in result.stderr
    assert "Traceback" not in result.stderr
