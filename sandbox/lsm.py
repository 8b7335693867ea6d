"""The node's security modules, as containers meet them: AppArmor's profiles and SELinux's labels.

AppArmor: our own profile is put into the kernel at the start, always, since an older daemon may
have left an older text of it. It stays there when the daemon ends: containers go on under it. The
list of profiles is read again for every container, because an administrator (or a DaemonSet) loads
profiles while we run; and if ours has gone meanwhile it is loaded again before it is needed.

SELinux: the default labels come from the node's policy, once; a pod's level is in its record. Two
kinds of our own files are met by every container: the pause program, which each pod runs, and the
files of layers, which Linux before 6.16 reads with the rights of whoever reads the container's root
(EROFS mounted from a file); so these get labels that every container may read.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host import files, lsm_files
from sandbox.host.errors import FailedPrecondition, NotFound, PodwrightError, Unsupported
from sandbox.host.journal import get_logger
from sandbox.host.selinux_policy import SelinuxPolicy, container_labels
from sandbox.security.apparmor_text import DEFAULT_PROFILE, profile_text
from sandbox.security.labels import UNCONFINED_TYPE, AppArmorHost, SELinuxHost, with_type
from sandbox.security.levels import Levels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls
    from sandbox.model import PodConfig
    from sandbox.paths import Paths

#: Compiling our profile takes tens of milliseconds; the limit is for a machine that is stuck.
PARSER_TIMEOUT_S: Final = 60.0
DEFAULT_PARSER: Final = Path("/usr/sbin/apparmor_parser")
_VERSION: Final = re.compile(r"version (\d+)\.(\d+)")

_log = get_logger("lsm")


@dataclasses.dataclass(frozen=True, slots=True)
class LsmSettings:
    """What the operator decided.

    Attributes:
        apparmor: use AppArmor where the kernel has it.
        selinux: use SELinux where it runs.
        parser: the program apparmor_parser.
        selinux_host_network: pods on the host's network are labelled too.
    """

    apparmor: bool = True
    selinux: bool = True
    parser: Path = DEFAULT_PARSER
    selinux_host_network: bool = True


class Lsm:
    """AppArmor and SELinux on this node."""

    def __init__(
        self,
        settings: LsmSettings,
        *,
        apparmor: bool,
        runner: ProcessRunner,
        sys: Path = lsm_files.SYS,
        proc: Path = lsm_files.PROC,
        etc: Path = lsm_files.ETC,
        policy: SelinuxPolicy | None = None,
    ) -> None:
        """Nothing is read before `start`; `apparmor` says that the kernel has it switched on."""
        self._settings = settings
        self._apparmor = apparmor and settings.apparmor
        self._runner = runner
        self._sys, self._proc, self._etc = sys, proc, etc
        self._loading = asyncio.Lock()
        self._policy = SelinuxPolicy(sys / "fs/selinux") if policy is None else policy
        self._selinux: SELinuxHost | None = None
        self._levels = Levels()

    async def start(self) -> None:
        """Load our profile and read the default labels; what fails is logged, pods run without."""
        if self._apparmor and await asyncio.to_thread(self._profiles) is not None:
            try:
                await self._load()
            except PodwrightError as error:
                _log.warning("no default apparmor profile", error=str(error))
            else:
                _log.info("apparmor profile loaded", profile=DEFAULT_PROFILE)
        self._selinux = await asyncio.to_thread(self._read_selinux)

    @property
    def selinux(self) -> SELinuxHost | None:
        """SELinux on this node; None without it, or when it is switched off."""
        return self._selinux

    async def apparmor(self) -> AppArmorHost | None:
        """AppArmor as of now, our profile loaded again when it has gone; None without AppArmor."""
        if not self._apparmor:
            return None
        loaded = await asyncio.to_thread(self._profiles)
        if loaded is None:
            return AppArmorHost(
                trouble=f"{lsm_files.apparmor_directory(self._sys)} is not there: "
                "mount securityfs on /sys/kernel/security"
            )
        if DEFAULT_PROFILE in loaded:
            return AppArmorHost(loaded=loaded, default_profile=DEFAULT_PROFILE)
        try:
            async with self._loading:  # the many that miss it at once cause one load
                loaded = await asyncio.to_thread(self._profiles) or frozenset()
                if DEFAULT_PROFILE not in loaded:
                    await self._load()
        except PodwrightError as error:
            return AppArmorHost(loaded=loaded, trouble=str(error))
        return AppArmorHost(loaded=loaded | {DEFAULT_PROFILE}, default_profile=DEFAULT_PROFILE)

    @contextlib.contextmanager
    def level(self, config: PodConfig, used: Iterable[str]) -> Iterator[str]:
        """The SELinux level for a new pod, its own while its record is written; empty without.

        Raises:
            ResourceExhausted: every level is in use.
        """
        host = self._selinux
        if host is None or host.trouble:
            yield ""
            return
        options = config.security.selinux
        wanted = options.level if options is not None else ""
        sensitivity = host.process_label.split(":", 3)[3].partition(":")[0]
        with self._levels.hold(used, wanted=wanted, sensitivity=sensitivity) as level:
            yield level

    def known(self, labels: tuple[str, str]) -> str:
        """The mount label of the two, when the policy in the kernel knows both; blocks briefly.

        Raises:
            FailedPrecondition: one is not valid there; the runtime would say so in worse words.
        """
        for label in labels:
            if label and self._selinux is not None and not self._policy.knows(label):
                raise FailedPrecondition(
                    f"selinux label {label} is not valid in the node's policy",
                    hint="load the policy module that declares its type, or change seLinuxOptions",
                )
        return labels[1]

    async def label_own(self, paths: Paths, images: Path, *, syscalls: Syscalls) -> None:
        """Label the pause program, and the layers below `images`, for every container to read."""
        host = self._selinux
        if host is not None and host.shared_label:
            await asyncio.to_thread(self._label_own, host, paths, images, syscalls)

    def _label_own(self, host: SELinuxHost, paths: Paths, images: Path, syscalls: Syscalls) -> None:
        label = host.shared_label
        if not self._policy.allows(host.process_label, label, "entrypoint"):
            # The reference policy lets containers begin only with what is theirs. Nobody writes to
            # the program nevertheless: it is seen through read-only mounts alone.
            label = host.mount_label
        lsm_files.label_tree(paths.pause_rootfs, label, syscalls=syscalls)
        # What is made in a directory has its label; so only the first start walks through it.
        for name in ("staging", "layers"):
            files.make_private_dir(images / name)
            try:
                lsm_files.label_tree_once(images / name, host.shared_label, syscalls=syscalls)
            except Unsupported as error:
                _log.warning("layers cannot be labelled", error=str(error))

    def _profiles(self) -> frozenset[str] | None:
        return lsm_files.apparmor_profiles(self._sys)

    async def _load(self) -> None:
        """Put our profile into the kernel, in place of any of that name.

        Raises:
            NotFound: no parser.
            FailedPrecondition: the parser or the kernel refuses it.
        """
        parser = str(self._settings.parser)
        try:
            version = await self._runner.run([parser, "--version"], timeout_s=PARSER_TIMEOUT_S)
        except NotFound as error:
            raise NotFound(
                "no apparmor_parser",
                path=parser,
                hint="install the package apparmor, or set runtime.apparmor_parser_path",
            ) from error
        match = _VERSION.search(version.stdout.decode(errors="replace"))
        number = (int(match[1]), int(match[2])) if match else (3, 0)
        text = await asyncio.to_thread(self._text, number)
        # Without its cache: nothing is then read from, or left in, a directory that is not ours.
        await self._runner.run(
            [parser, "--replace", "--skip-cache"],
            stdin=text.encode(),
            timeout_s=PARSER_TIMEOUT_S,
            check=FailedPrecondition,
        )
        # It may end well without having done anything (a kernel that refuses it, before 3.0.9).
        if DEFAULT_PROFILE not in (await asyncio.to_thread(self._profiles) or ()):
            raise FailedPrecondition(
                "apparmor_parser ended well, but the profile is not in the kernel",
                profile=DEFAULT_PROFILE,
            )

    def _text(self, number: tuple[int, int]) -> str:
        return profile_text(
            parser=number,
            abi=lsm_files.apparmor_abi(self._etc),
            own_label=lsm_files.own_apparmor_label(self._proc),
        )

    def _read_selinux(self) -> SELinuxHost | None:
        if not self._settings.selinux or not lsm_files.selinux_running(self._sys, self._proc):
            return None
        try:
            labels = container_labels(self._policy, self._etc)
        except PodwrightError as error:
            _log.warning("no selinux labels for containers", error=str(error))
            return SELinuxHost(process_label="", mount_label="", trouble=str(error))
        unconfined = with_type(labels.process, UNCONFINED_TYPE)
        return SELinuxHost(
            unconfined_label=unconfined if self._policy.knows(unconfined) else "",
            process_label=labels.process,
            mount_label=labels.file,
            shared_label=labels.shared,
            host_network=self._settings.selinux_host_network,
        )
