"""The daemon of one release after that of another, on the same roots, with pods that go on.

Older releases are commits of this repository, taken out of its history; where that is not there (a
shallow clone) a test is skipped, and says so. There is one schema so far, so the release after this
one is this tree with a second migration that only these tests have.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import api_pb2 as api
from sandbox.statefile import migrations
from tests.kit.calls import until
from tests.kit.census import copy_database
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node, NodeFailed

TOP = Path(__file__).parents[2]
SLEEP = ["sleep", "1000"]
#: Commits: one before records had second copies, one after.
RELEASES = ["fa6e8ff", "9312c6a"]
PACKAGES = ("cni", "cri", "imageservice", "metrics", "protos", "sandbox")
MIGRATION = """
-- migration 2: of the tests alone
CREATE TABLE notes (id TEXT PRIMARY KEY, text TEXT NOT NULL);
INSERT INTO notes SELECT id, 'made before' FROM pods;
ALTER TABLE containers ADD COLUMN note TEXT NOT NULL DEFAULT 'none';
"""


def old_tree(commit: str, place: Path) -> Path:
    """The release of that commit, in `place`."""
    git = ["git", "-C", str(TOP)]
    if subprocess.run(
        [*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True
    ).returncode:
        pytest.skip(f"the history of this clone does not go back to {commit}")
    place.mkdir()
    archive = subprocess.run([*git, "archive", commit, *PACKAGES], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", place], input=archive.stdout, check=True)
    return place


def newer_tree(place: Path) -> Path:
    """This tree with a second migration, in `place`."""
    for package in PACKAGES:
        shutil.copytree(TOP / package, place / package)
    with (place / "sandbox" / "schema.sql").open("a") as schema:
        schema.write(MIGRATION)
    return place


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("release")


def schema_of(node: Node) -> tuple[int, bool]:
    """(number of the schema, whether what the second migration makes is there)."""
    # A copy, with the log: to look must not change anything.
    copy = node.work / "look.db"
    copy_database(node.state_root / "state.db", copy)
    with contextlib.closing(sqlite3.connect(copy)) as database:
        [(version,)] = database.execute("PRAGMA user_version").fetchall()
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in database.execute("PRAGMA table_info(containers)")}
    for suffix in ("", "-wal", "-shm"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
    assert ("notes" in tables) == ("note" in columns), "a migration is there by half"
    return int(version), "notes" in tables


@pytest.mark.cell("UP1")
@pytest.mark.parametrize("commit", RELEASES)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_pods_of_an_older_release(
    certs_d: Path, place: Path, commit: str, how: signal.Signals
) -> None:
    """Adopted, run, stopped and removed by this one, over three restarts; its image is usable."""
    tree = old_tree(commit, place / "old")
    with Node.running(f"old-{commit}", certs_d, images=(), tree=tree) as node:
        node.pull(BUSYBOX)
        pods = {h: node.run_pod(h, handler=h) for h in ("crun", "runc")}
        ticking = {
            h: node.run(pod, "ticking", ["ping", "-i", "0.05", "127.0.0.1"])
            for h, pod in pods.items()
        }
        created = node.create(pods["crun"], "created", SLEEP)
        exited = node.run(pods["runc"], "exited", ["sh", "-c", "echo bye; exit 3"])
        node.wait_exited(exited)
        stopped = node.run_pod("stopped")
        node.stop_pod(stopped)
        pids = [node.container_pid(c) for c in ticking.values()]
        addresses = [node.pod_status(pod).network.ip for pod in pods.values()]
        image = node.image_id(BUSYBOX)
        node.kill(how)
        node.tree = None
        for _ in range(3):
            node.start_daemon()
            node.assert_true()
            assert [node.container_pid(c) for c in ticking.values()] == pids
            assert [node.pod_status(p).network.ip for p in pods.values()] == addresses
            assert node.status(created).state == api.CONTAINER_CREATED
            assert node.status(exited).exit_code == 3
            assert node.pod_status(stopped).state == api.SANDBOX_NOTREADY
            assert node.image_id(BUSYBOX) == image
            for handler, container in ticking.items():
                assert node.exec(container, "echo", "alive")[1] == "alive\n"
                seen = len(node.log_of(handler, "ticking"))
                until(lambda h=handler, n=seen: len(node.log_of(h, "ticking")) > n, "it goes on")  # type: ignore[misc]
            node.kill(signal.SIGTERM)
        node.start_daemon()
        assert node.log_of("runc", "exited") == "bye\n"
        node.start(created)
        assert node.exec(created, "true")[0] == 0
        node.stop_container(ticking["crun"], 1)
        assert node.status(ticking["crun"]).state == api.CONTAINER_EXITED
        node.remove_container(ticking["crun"])
        fresh = node.run_pod("fresh")
        node.run(fresh, "main", SLEEP)
        node.remove_everything()
        assert not node.pods()
        assert not node.containers()
        census = node.census()
        assert not census["addresses"]
        assert not [line for line in census["mounts"] if "/containers/" in line or "/pods/" in line]
        assert not [line for line in census["rows"] if line.startswith("state.db")]
        assert not census["cgroups"]
        assert not node.processes_doing("ping -i 0.05")


@pytest.fixture
def upgraded(certs_d: Path, place: Path) -> Iterator[Node]:
    """A node whose daemon can be made that of the next release: `node.tree = node.newer`."""
    with Node.running("migration", certs_d, failpoints=True) as node:
        yield node


STEPS = [
    ("kill", "state.db.version-1", 1),
    ("kill-after", "state.db.version-1", 1),
    ("kill", "^rename WORK/state/state.db.version-1", 1),
    ("kill-after", "^rename WORK/state/state.db.version-1", 1),
    ("kill", "^make WORK/state/state.db.reserve", 1),
]


@pytest.mark.cell("DB1")
@pytest.mark.parametrize(("what", "match", "nth"), STEPS)
def test_killed_beside_a_migration(
    upgraded: Node, place: Path, what: str, match: str, nth: int
) -> None:
    """The schema is the old one or the new one, a copy of the old is kept, and the pods go on."""
    node = upgraded
    assert node.failpoints is not None
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pid = node.container_pid(container)
    node.stop()
    node.tree = newer_tree(place)
    with node.failpoints.ordered(what, match=match, nth=nth):
        node.start_daemon(wait=False)
        process = node.process
        assert process is not None
        until(lambda: process.poll() is not None, "it has died")
    steps = node.failpoints.steps()
    assert process.returncode == -signal.SIGKILL, f"{steps}: {node.log_tail()}"
    node.forget_process()
    version, changed = schema_of(node)
    assert changed == (version == 2)
    copy = node.state_root / "state.db.version-1"
    if changed:
        with contextlib.closing(sqlite3.connect(copy)) as database:
            [(number,)] = database.execute("PRAGMA user_version").fetchall()
            rows = database.execute("SELECT id FROM pods").fetchall()
        assert (number, rows) == (1, [(pod,)])
    else:
        # The release of before goes on as if nothing had been.
        node.tree = None
        node.start_daemon()
        assert node.container_pid(container) == pid
        node.stop()
        node.tree = place
    node.start_daemon()
    node.assert_true()
    assert schema_of(node) == (2, True)
    assert node.container_pid(container) == pid
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.run(node.run_pod("fresh"), "main", SLEEP)
    assert copy.exists()
    node.stop()
    # And that one refuses what is newer, and touches nothing of it.
    node.tree = None
    before = (node.state_root / "state.db").read_bytes()
    with pytest.raises(NodeFailed, match="schema version 2"):
        node.start_daemon()
    node.forget_process()
    assert (node.state_root / "state.db").read_bytes() == before
    node.tree = place
    node.start_daemon()
    assert node.container_pid(container) == pid
    node.remove_everything()
    assert not node.pods()


def test_there_is_one_schema_so_far() -> None:
    """With the second one, its release before becomes a commit of `RELEASES`."""
    assert len(migrations()) == 1
