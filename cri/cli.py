"""The command `podwright`: serve, check, config, status, unit, wipe; `cli_images` has images.

Everything heavy is imported by the command that needs it, so that `--help` and mistakes are quick.
Exit status: 0 done, 1 failed (for `check`: something is missing), 2 the command line is wrong.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cri.cli_images import add_image_commands
from cri.cli_options import configured, load_config
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from cri.config import Config

# Before anything imports grpc: its fork handlers stop threads around every fork, and nothing here
# forks; programs are started by vfork and exec (grpc/grpc#37259 is what they cost).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# And its older way of listening: the newer one hands every call through threads of a pool, which
# also look for work many times a second for a while after each. Without it a call of a kubelet that
# asks each second costs 0.53 instead of 0.64 ms of processor time, and is answered in 0.59 instead
# of 0.66 ms; a release that does not know the name any more says so once and listens as it likes.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

#: What an uninstalled tree calls itself.
SOURCE_VERSION: Final = "0.1.0+source"


def package_version() -> str:
    """The installed version."""
    try:
        return installed_version("podwright")
    except PackageNotFoundError:
        return SOURCE_VERSION


class _Commands(click.Group):
    """A group whose commands may fail in our own classes."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a failure is one message on standard error and exit status 1."""
        try:
            return super().invoke(ctx)
        except PodwrightError as error:
            for problem in getattr(error, "problems", (error,))[:-1]:
                click.echo(f"Error: {problem}", err=True)
            last = getattr(error, "problems", (error,))[-1]
            raise click.ClickException(str(last)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A Kubernetes CRI container runtime service."""


@main.command()
@configured
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--run-root", metavar="DIR", help="What must not outlive a boot.")
@click.option("--state-root", metavar="DIR", help="What must outlive a boot.")
@click.option("--socket", metavar="FILE", help="Where gRPC is served.")
def serve(
    config: Path | None,
    values: tuple[str, ...],
    log_level: str | None,
    run_root: str | None,
    state_root: str | None,
    socket: str | None,
) -> None:
    """Run the daemon until SIGTERM; pods outlive it."""

    def read() -> Config:
        return load_config(
            config,
            values,
            log_level=log_level,
            run_root=run_root,
            state_root=state_root,
            socket=socket,
        )

    chosen = read()
    import asyncio

    from cri import settings_table as table
    from cri.daemon import Daemon
    from cri.server import planned_failure
    from sandbox.host import journal
    from sandbox.host.heap import one_heap

    one_heap()  # before there are threads
    journal.configure(chosen.get(table.LOG_LEVEL), json=chosen.get(table.LOG_FORMAT) == "json")
    try:
        asyncio.run(Daemon(chosen, version=package_version(), load=read).run())
    except BaseExceptionGroup as group:
        # Whatever ends the daemon comes out of its task group.
        if (failure := planned_failure(group)) is None:
            raise
        raise failure from group


@main.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@click.option("--strict", is_flag=True, help="Exit status 1 for warnings too.")
def check(config: Path | None, values: tuple[str, ...], as_json: bool, strict: bool) -> None:
    """Tell what this node has and lacks for the configuration, and the remedy.

    Exit status: 0 when pods can run (there may be warnings), 1 when something needed is missing.
    """
    chosen = load_config(config, values)
    import asyncio

    from cri.check.examine import examine
    from cri.check.finding import Level
    from cri.render import findings_json, show_findings
    from sandbox.host import journal

    journal.configure("error")
    findings = asyncio.run(examine(chosen))
    if as_json:
        click.echo(findings_json(findings))
    else:
        show_findings(findings)
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    sys.exit(any(finding.level in bad for finding in findings))


@main.command("config")
@configured
@click.option("--validate", is_flag=True, help="Print nothing but problems.")
@click.option("--help-settings", is_flag=True, help="Print every setting with what it means.")
def show_config(
    config: Path | None, values: tuple[str, ...], validate: bool, help_settings: bool
) -> None:
    """Print the effective configuration as TOML, each line with its origin."""
    chosen = load_config(config, values)
    if not validate:
        from cri.render import config_text

        click.echo(config_text(chosen, explain=help_settings))


@main.command()
@configured
@click.option("--socket", metavar="FILE", help="Socket of the daemon.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def status(config: Path | None, values: tuple[str, ...], socket: str | None, as_json: bool) -> None:
    """Ask the daemon how it is. Exit status 1 when it does not answer or is not ready."""
    chosen = load_config(config, values, socket=socket)
    from cri.render_status import gather_status, show_status, status_json
    from cri.rpc.client import DaemonClient

    with DaemonClient(chosen.socket) as daemon:
        report = gather_status(daemon)
    if as_json:
        click.echo(status_json(report))
    else:
        show_status(report)
    sys.exit(not report.ready)


@main.command()
@configured
def unit(config: Path | None, values: tuple[str, ...]) -> None:
    """Print a systemd unit that runs this program with the configuration and settings given.

    podwright unit > /etc/systemd/system/podwright.service
    """
    chosen = load_config(config, values)
    from cri import settings_table as table
    from cri.unit import unit_text

    program = Path(sys.executable).with_name("podwright")
    start = [str(program), "serve"]
    if config is not None:
        start += ["--config", str(config.absolute())]
    for value in values:
        start += ["--set", value]
    click.echo(unit_text(start, stop_grace_s=chosen.get(table.STOP_GRACE)), nl=False)


@main.command()
@configured
@click.option("--images", is_flag=True, help="Remove all images as well.")
@click.option("--dry-run", is_flag=True, help="Only print what there is to remove.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def wipe(
    config: Path | None, values: tuple[str, ...], images: bool, dry_run: bool, yes: bool
) -> None:
    """Remove every trace of containers from this node, while no daemon runs.

    Exit status: 0 when nothing is left, 1 otherwise, and when the daemon runs.
    """
    chosen = load_config(config, values)
    import asyncio

    from cri.wipe import wipe_node
    from sandbox.host import journal

    journal.configure("error")
    sys.exit(not asyncio.run(wipe_node(chosen, images=images, dry_run=dry_run, yes=yes)))


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"podwright {package_version()}")


add_image_commands(main)
