"""What `hack/vm test` runs inside: which tests, with which driver, on which kernel.

A suite is one run of pytest, or of critest, in a fresh machine. The short ones are for every run of
CI; all of them are for a release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tests.kit.vm import recipe

Driver = Literal["cgroupfs", "systemd"]
#: Where a suite leaves its report inside.
REPORTS: Final = "/var/tmp/vm-reports"
#: Between the request to end (SIGINT, on which pytest writes its report) and the end; seconds.
END_GRACE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Suite:
    """One run.

    Attributes:
        name: what it is about, for the table.
        driver: of control groups.
        argv: of pytest, or of critest if `critest` says so.
        limit_s: how long it may take.
        older: whether an older kernel answers it differently, so that it is run there too.
    """

    name: str
    driver: Driver
    argv: tuple[str, ...]
    limit_s: float
    critest: bool = False
    older: bool = False

    @property
    def command(self) -> list[str]:
        """What is run inside; it reports what it has seen even when its time is up."""
        timed = ["timeout", "--signal=INT", f"--kill-after={END_GRACE_S / 2:.0f}"]
        timed.append(f"{self.limit_s:.0f}")
        if self.critest:
            return [*timed, "hack/critest", "--reports", REPORTS, *self.argv]
        report = f"--junitxml={REPORTS}/junit.xml"
        return [*timed, ".venv/bin/python", "-m", "pytest", *_PYTEST, report, *self.argv]

    @property
    def title(self) -> str:
        """Name and driver, by which `--suite` chooses."""
        return f"{self.name}, {self.driver}"


_PYTEST: Final = ("-v", "-p", "no:cacheprovider", "--tb=short", "-o", "faulthandler_timeout=1200")

_DRIVERS: Final[tuple[Driver, ...]] = ("cgroupfs", "systemd")
_HOST: Final = (
    *("tests/host/test_host_cgroups.py", "tests/host/test_runtime_cgroups.py"),
    "tests/host/test_stats_cgroups.py",
)
#: What a kernel decides: mounts, user namespaces, quota, indexed layers.
_KERNEL: Final = (
    *("tests/host/test_check.py", "tests/host/test_host_mounts.py"),
    *("tests/host/test_user_namespaces.py", "tests/host/test_project_quota.py"),
    *("tests/host/test_images_forms.py", "tests/host/test_images_indexed.py"),
    "tests/host/test_images_overlay.py",
)
_GROUPS: Final = "tests/integration/test_groups.py"
_SHORT_GROUPS: Final = "limits_of_a_container or no_parent"
#: The driver names the group that a runtime makes, and nothing else. So what has no part in groups
#: (streams, logs, images, users, networks) is the same code with both: this kernel has all of it
#: with systemd, and these choices with cgroupfs.
_CONTAINERS_GROUPS: Final = (
    "memory or limit or frozen or background or grace or running_container or hundred or privileged"
)
_PODS_GROUPS: Final = (
    "stop_ends or remove_takes or removals or removed_at_once or parent_group or verbose"
)
_RESTARTS_GROUPS: Final = "(told_as_before and kill) or daemon_is_down or middle_of or pause"
_APPARMOR: Final = "tests/integration/test_apparmor.py"
_SHORT_APPARMOR: Final = (
    "default_holds and unset or refused_by_name and missing or found_and_enforced and localhost"
)
_SELINUX: Final = "tests/integration/test_selinux.py"
_MAPPED: Final = "tests/integration/test_user_namespaces.py"
#: What of user namespaces has to do with the group of a pod.
_MAPPED_GROUPS: Final = "root_inside or control_group or survives or killed_while or host_network"

#: Of everything that critest has, what concerns groups, modules and namespaces.
_CRITEST: Final = (
    "AppArmor|resources|Resources|OOM|UserNamespaces|NamespaceOption|SeccompProfile|"
    "runtime info|should support|Container.*stats|PodSandbox"
)
#: Of those, what has a part in groups.
_CRITEST_GROUPS: Final = (
    "OOM|resources|Resources|stats|runtime info|PodSandbox|basic operations on container|"
    "Multiple Containers|Idempotence|HostPID|PodPID|Privileged|volume and device"
)
_FOCUS: Final[Mapping[Driver, str]] = {"cgroupfs": _CRITEST_GROUPS, "systemd": _CRITEST}


def short() -> list[Suite]:
    """What fits into a few minutes, with both drivers and both runtimes."""
    return [
        Suite("control groups, short", "systemd", (_GROUPS, "-k", _SHORT_GROUPS), 900.0),
        Suite("control groups of the host", "cgroupfs", _HOST, 600.0),
        Suite("AppArmor, short", "cgroupfs", (_APPARMOR, "-k", _SHORT_APPARMOR), 600.0),
    ]


def every(kernel: str) -> list[Suite]:
    """All that concerns what this kernel may lack; on older ones what they answer differently."""
    suites = [
        Suite("control groups of the host", "cgroupfs", _HOST, 900.0, older=True),
        Suite("kernel", "cgroupfs", _KERNEL, 1800.0, older=True),
        *_with_both_drivers(),
        Suite("AppArmor", "cgroupfs", (_APPARMOR,), 3600.0),
        Suite("AppArmor, short", "cgroupfs", (_APPARMOR, "-k", _SHORT_APPARMOR), 600.0, older=True),
        Suite("user namespaces", "cgroupfs", (_MAPPED,), 5400.0, older=True),
        Suite("user namespaces, groups", "systemd", (_MAPPED, "-k", _MAPPED_GROUPS), 3600.0),
        *_of_one_file("cgroupfs"),
        *(
            Suite(
                f"critest, {handler}",
                driver,
                ("--handler", handler, "--focus", _FOCUS[driver]),
                7200.0,
                critest=True,
            )
            for handler in ("crun", "runc")
            for driver in _DRIVERS
        ),
        # Neither groups nor modules have a part in these, and no path of theirs differs from that
        # on any other kernel: last, since they say the least here.
        Suite("mounts", "cgroupfs", ("tests/integration/test_mounts.py",), 3600.0),
        Suite("seccomp", "cgroupfs", ("tests/integration/test_seccomp.py",), 3600.0),
    ]
    newest = next(iter(recipe.KERNELS))
    return [suite for suite in suites if suite.older or kernel == newest]


def under_selinux() -> list[Suite]:
    """What a policy decides, in the machine that has one."""
    return [Suite("SELinux", "cgroupfs", (_SELINUX,), 5400.0)]


def _with_both_drivers() -> Iterable[Suite]:
    for name, file, of_groups in (
        ("control groups", "groups", ""),
        ("containers", "containers", _CONTAINERS_GROUPS),
        ("pods", "pods", _PODS_GROUPS),
        ("usage, events, resize", "observe", ""),
        ("restarts", "restart", _RESTARTS_GROUPS),
    ):
        path = f"tests/integration/test_{file}.py"
        yield Suite(name, "systemd", (path,), 5400.0, older=name == "control groups")
        chosen = ("-k", of_groups) if of_groups else ()
        yield Suite(name, "cgroupfs", (path, *chosen), 5400.0)


def _of_one_file(driver: Driver) -> Iterable[Suite]:
    for name, file, older in (
        ("user namespaces, devices", "user_namespace_devices", False),
        ("user namespaces, streams", "user_namespace_streams", False),
        ("user namespaces, volumes", "user_namespace_volumes", True),
        ("layer limits", "layer_limits", True),
        ("devices", "devices", False),
        ("image volumes", "image_volumes", True),
    ):
        yield Suite(name, driver, (f"tests/integration/test_{file}.py",), 3600.0, older=older)
