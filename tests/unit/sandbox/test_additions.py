"""What the node adds to a container by its configuration."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace as changed

from sandbox.additions import Additions
from sandbox.cdi.library import CdiLibrary
from sandbox.hooks import HookFiles
from sandbox.host.errors import InvalidArgument
from sandbox.model import Container
from sandbox.oci import Rlimit
from sandbox.settings import SandboxSettings
from sandbox.states import ContainerState
from sandbox.users import ResolvedUser
from tests.fakes.clock import FakeClock
from tests.kit.spec_inputs import CONTAINER, IMAGE, POD

USER = ResolvedUser(uid=1, gid=2, additional_gids=())


def edits(additions, config=CONTAINER, pod=POD):
    return additions.edits(pod, config, IMAGE, user=USER, runtime_spec=(1, 0))


def container(config=CONTAINER, runtime="crun"):
    return Container(
        id="c1",
        pod_id="p1",
        config=config,
        state=ContainerState.CREATING,
        created_at_ns=1,
        runtime=runtime,
    )


def test_cdi_hooks_come_before_the_nodes_own(tmp_path):
    (tmp_path / "cdi.yaml").write_text(
        "cdiVersion: 0.3.0\nkind: v/c\ndevices:\n- name: d\n  containerEdits:\n"
        "    env: [D=1]\n    hooks: [{hookName: poststop, path: /of/cdi}]\n"
    )
    hook = {
        "version": "1.0.0",
        "hook": {"path": "/bin/true"},
        "when": {"annotations": {"^team$": "^blue$"}},
        "stages": ["prestart", "poststop"],
    }
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "h.json").write_text(json.dumps(hook))
    additions = Additions(cdi=CdiLibrary([tmp_path]), hooks=HookFiles([hooks]))
    pod = changed(POD, annotations={"team": "blue"})
    found = edits(additions, changed(CONTAINER, cdi_devices=("v/c=d",)), pod)
    assert found.env == ("D=1",)
    paths = {stage: [hook.path for hook in each] for stage, each in found.hooks.items()}
    assert paths == {"poststop": ["/of/cdi", "/bin/true"], "prestart": ["/bin/true"]}
    # A container's annotation goes before the pod's.
    red = changed(CONTAINER, annotations={"team": "red"})
    assert edits(additions, red, pod).hooks == {}
    assert edits(Additions()).hooks == {}


def test_limits_of_allowed_annotations_go_over_the_nodes():
    additions = Additions(
        rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=1, hard=1),),
        ceilings={"RLIMIT_NOFILE": 50},
        patterns={"crun": ("podwright.io/*",)},
    )
    pod = changed(POD, annotations={"podwright.io/rlimits": "nofile=7"})
    assert additions.rlimits_of(pod, container())[0].hard == 7
    assert additions.rlimits_of(pod, container(runtime="runc"))[0].hard == 1
    assert additions.rlimits_of(POD, container())[0].hard == 1
    pod = changed(POD, annotations={"podwright.io/rlimits": "nofile=51"})
    with pytest.raises(InvalidArgument, match="nofile cannot be 51"):
        additions.rlimits_of(pod, container())


def test_configured_limits_that_cannot_be_set_keep_the_daemon_from_starting():
    settings = SandboxSettings(rlimits=("nofile=999999999999",))
    with pytest.raises(InvalidArgument, match=r"runtime\.rlimits: nofile cannot be"):
        Additions.of(settings, may_raise=False, clock=FakeClock())
    settings = SandboxSettings(rlimits=("core=0",))
    assert Additions.of(settings, may_raise=False, clock=FakeClock()).rlimits[0].hard == 0


def test_devices_keep_their_owner_unless_configured():
    security = changed(CONTAINER.security, run_as_user=5)
    config = changed(CONTAINER, security=security)
    assert Additions().device_owner(config) == (None, None)
    assert Additions(device_ownership=True).device_owner(config) == (5, None)
    assert Additions(device_ownership=True).device_owner(CONTAINER) == (None, None)
