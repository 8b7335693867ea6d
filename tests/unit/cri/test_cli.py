import asyncio
import json
import subprocess
import sys
import threading
import tomllib

import pytest
from click.testing import CliRunner

from cri.cli import main
from cri.rpc.service import build_methods
from cri.server import RpcServer
from imageservice.progress import Progress, Stage
from sandbox.host.clock import SystemClock
from sandbox.host.errors import NotFound
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
        if command in {"status", "pull"}:
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


def test_help_imports_nothing_heavy():
    probe = (
        "import sys, cri.cli; "
        "heavy = {'grpc', 'google.protobuf', 'rich', 'aiohttp', 'asyncio'} & set(sys.modules); "
        "print(*sorted(heavy))"
    )
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
