"""Findings about what stands between this node and its registries: credentials and proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri import settings_images as table
from cri.check.finding import Finding, Level
from cri.config_files import ENVIRONMENT
from imageservice.errors import AuthFileInvalid
from imageservice.keyrings import NAMESPACE_FILE, read_auth_file
from sandbox.host.dropins import check_trusted
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri.config import Config
    from imageservice.settings import ImageSettings

GROUP: Final = "registries"
#: Files and helpers that are looked at; a node has a handful.
_LIMIT: Final = 1000


def registries(config: Config) -> list[Finding]:
    """Which credentials and proxies pulls would use now, and which cannot be used. Blocking."""
    settings = config.images()
    return [*_credentials(settings), *_helpers(settings), *_proxies(config)]


def _credentials(settings: ImageSettings) -> list[Finding]:
    findings = []
    files = hosts = 0
    for path in _files(settings):
        try:
            found = read_auth_file(path)
        except (AuthFileInvalid, OSError) as error:
            what = "pulls that bring no credentials fail until it is mended"
            remedy = getattr(error, "hint", "") or "mend it, or remove it"
            detail = f"{error.message if isinstance(error, AuthFileInvalid) else error}: {path}"
            findings.append(
                Finding(GROUP, "credentials", Level.WARNING, detail, f"{remedy}; {what}")
            )
            continue
        if found is not None:
            files, hosts = files + 1, hosts + len(found.content.hosts)
    if findings and not files:
        return findings
    detail = f"{files} files, for {hosts} hosts" if files else "none: pulls bring their own"
    return [*findings, Finding(GROUP, "credentials", Level.OK, detail)]


def _files(settings: ImageSettings) -> Iterator[Path]:
    if settings.auth_file is not None:
        yield settings.auth_file
    root = settings.namespaced_auth_dir
    if root is not None and root.is_dir():
        for entry in sorted(root.iterdir())[:_LIMIT]:
            yield entry / NAMESPACE_FILE if entry.is_dir() else entry


def _helpers(settings: ImageSettings) -> Iterator[Finding]:
    for directory in settings.credential_helper_dirs:
        if not directory.is_dir():
            yield Finding(
                GROUP,
                "credential helpers",
                Level.WARNING,
                f"{directory} does not exist",
                "make it, or take it out of image.credential_helper_dirs",
            )
            continue
        programs = sorted(directory.glob("docker-credential-*"))[:_LIMIT]
        for program in programs:
            try:
                check_trusted(program)
            except PodwrightError as error:
                yield Finding(GROUP, "credential helpers", Level.WARNING, error.message, error.hint)
        yield Finding(
            GROUP, "credential helpers", Level.OK, f"{len(programs)} programs in {directory}"
        )


def _proxies(config: Config) -> Iterator[Finding]:
    chosen = []
    for setting in (table.HTTPS_PROXY, table.HTTP_PROXY):
        origin = config.origins[setting.key]
        proxy = config.get(setting)
        if proxy is not None:
            chosen.append(f"{setting.name.removesuffix('_proxy')} through {proxy} ({origin})")
        elif origin.startswith(ENVIRONMENT):
            yield Finding(
                GROUP, "proxy", Level.WARNING, origin, f"set {setting.key} in the configuration"
            )
    exceptions = ", ".join(config.get(table.NO_PROXY))
    if chosen and exceptions:
        chosen.append(f"but not for {exceptions}")
    yield Finding(GROUP, "proxy", Level.OK, "; ".join(chosen) or "none: registries directly")
