"""The commands for images: pull, images, rmi, load, save, pin, unpin, verify.

They are calls of the daemon's: it alone writes to the store. Where no daemon runs, because the node
or a disk for image.additional_stores is only being prepared, `load`, `pull` and `verify` work on a
store by themselves when they are given its `--root`, and leave it closed in order.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cri.cli_options import configured, load_config
from sandbox.host.errors import FailedPrecondition, InvalidArgument, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES: Final = 1 << 20
_SOCKET = click.option("--socket", metavar="FILE", help="Socket of the daemon.")
_ROOT = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work on this store by ourselves, and leave it closed in order; no daemon may use it.",
)


def add_image_commands(main: click.Group) -> None:
    """Have them under `podwright`."""
    for command in (pull, images, rmi, load, save, pin, unpin, verify):
        main.add_command(command)


@click.command()
@configured
@_SOCKET
@click.option("--username", default="", help="User name to show the registry.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@_ROOT
@click.argument("image")
def pull(
    config: Path | None,
    values: tuple[str, ...],
    socket: str | None,
    username: str,
    password_stdin: bool,
    root: Path | None,
    image: str,
) -> None:
    """Have the daemon pull IMAGE, with a bar for each layer; prints the image's id."""
    if bool(username) != password_stdin:
        raise InvalidArgument("--username and --password-stdin belong together")
    password = sys.stdin.readline().rstrip("\n") if password_stdin else ""
    chosen = load_config(config, values, socket=socket)
    from cri.render_images import Layers, show_pull

    if root is not None:
        import asyncio

        from cri.offline import pull_offline

        with Layers(None) as lines:
            done = pull_offline(chosen, root.absolute(), image, username, password, lines.note)
            image_id = asyncio.run(done)
        click.echo(image_id)
        return
    from cri.rpc.client import DaemonClient

    with DaemonClient(chosen.socket) as daemon:
        click.echo(show_pull(daemon.pull(image, username, password)))


@click.command()
@configured
@_SOCKET
@click.option("--digests", is_flag=True, help="Show the digests of the registries too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def images(
    config: Path | None, values: tuple[str, ...], socket: str | None, digests: bool, as_json: bool
) -> None:
    """List the images of this node."""
    chosen = load_config(config, values, socket=socket)
    from cri.render_images import images_json, show_images
    from cri.rpc.client import DaemonClient

    with DaemonClient(chosen.socket) as daemon:
        found = daemon.images()
    if as_json:
        click.echo(images_json(found))
    else:
        show_images(found, digests=digests)


@click.command()
@configured
@_SOCKET
@click.argument("image", nargs=-1, required=True)
def rmi(
    config: Path | None, values: tuple[str, ...], socket: str | None, image: tuple[str, ...]
) -> None:
    """Remove images with all their names; layers that containers run on stay until these go.

    Exit status 1 when one of them was not there; the others are removed.
    """
    chosen = load_config(config, values, socket=socket)
    from cri.rpc.client import DaemonClient

    missing: list[str] = []
    with DaemonClient(chosen.socket) as daemon:
        for name in image:
            found = daemon.image_id(name)
            if not found:
                missing.append(name)
                continue
            daemon.remove_image(found)
            click.echo(found)
    if missing:
        raise InvalidArgument(f"not on this node: {', '.join(missing)}")


@click.command()
@configured
@_SOCKET
@click.option("-i", "--input", "source", default="-", metavar="FILE", help="Archive; - is stdin.")
@click.option("--name", default="", help="Call the archive's one image so.")
@click.option("--pin", "pinned", is_flag=True, help="Keep it from the kubelet's collection.")
@_ROOT
def load(
    config: Path | None,
    values: tuple[str, ...],
    socket: str | None,
    source: str,
    name: str,
    pinned: bool,
    root: Path | None,
) -> None:
    """Load images from an archive; prints their ids and names.

    FILE is an OCI image layout (a tar, or the directory itself) or what docker save writes, also
    compressed with gzip or zstd.

    What --root has made may be put on a read-only disk, whole, with owners and attributes (cp -a,
    mksquashfs, mkfs.ext4 -d), and named in image.additional_stores of any number of nodes.
    """
    chosen = load_config(config, values, socket=socket)
    from cri.render_images import show_load

    if root is not None:
        import asyncio

        from cri.offline import load_offline

        for line in asyncio.run(
            load_offline(chosen, root.absolute(), archive_bytes(source), name, pinned)
        ):
            click.echo(line)
        return
    from cri.rpc.client import DaemonClient

    with DaemonClient(chosen.socket) as daemon:
        for line in show_load(daemon.load(archive_bytes(source), name, pinned)):
            click.echo(line)


@click.command()
@configured
@_SOCKET
@click.option("-o", "--output", default="-", metavar="FILE", help="Where to; - is stdout.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["oci", "docker"]),
    default="oci",
    show_default=True,
    help="OCI image layout, or what docker load reads.",
)
@click.argument("image", nargs=-1, required=True)
def save(
    config: Path | None,
    values: tuple[str, ...],
    socket: str | None,
    output: str,
    form: str,
    image: tuple[str, ...],
) -> None:
    """Write images to one archive; the same images give the same bytes.

    An image named by a tag is saved under that tag, by its id or digest under all its tags.
    """
    chosen = load_config(config, values, socket=socket)
    if output == "-" and sys.stdout.isatty():
        raise InvalidArgument("an archive is not for a terminal", hint="name a file with -o")
    from cri.render_images import show_save
    from cri.rpc.client import DaemonClient

    with DaemonClient(chosen.socket) as daemon:
        chunks = show_save(daemon.save(image, form))
        if output == "-":
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        _write_whole(Path(output), chunks)


@click.command()
@configured
@_SOCKET
@click.argument("image")
def pin(config: Path | None, values: tuple[str, ...], socket: str | None, image: str) -> None:
    """Keep the kubelet's collection from IMAGE."""
    _pin(config, values, socket, image, pinned=True)


@click.command()
@configured
@_SOCKET
@click.argument("image")
def unpin(config: Path | None, values: tuple[str, ...], socket: str | None, image: str) -> None:
    """Take back what `pin` and `load --pin` did; what image.pinned_images names stays pinned."""
    _pin(config, values, socket, image, pinned=False)


@click.command()
@configured
@_SOCKET
@click.option("--repair", is_flag=True, help="Drop what is bad and fetch it again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
@_ROOT
def verify(
    config: Path | None,
    values: tuple[str, ...],
    socket: str | None,
    repair: bool,
    as_json: bool,
    root: Path | None,
) -> None:
    """Hold every image of this node against its digests, and the records against the disk.

    A store that --root names is only read, unless it is to be repaired or was not closed in order:
    then it is put in order first, as the start of a daemon on it would do.

    Exit status: 0 when nothing is wrong, 1 when something is, or was until --repair mended it.
    """
    chosen = load_config(config, values, socket=socket)
    from cri.render_images import VerifyBar, findings_text, found_bad, show_verify

    if root is not None:
        import asyncio

        from cri.offline import verify_offline

        with VerifyBar() as bar:
            work = verify_offline(chosen, root.absolute(), repair=repair, on_progress=bar.show)
            findings = found_bad(asyncio.run(work))
    else:
        from cri.rpc.client import DaemonClient

        with DaemonClient(chosen.socket) as daemon:
            findings = show_verify(daemon.verify(repair))
    for line in findings_text(findings, as_json=as_json):
        click.echo(line)
    sys.exit(bool(findings))


def _pin(
    config: Path | None, values: tuple[str, ...], socket: str | None, image: str, *, pinned: bool
) -> None:
    chosen = load_config(config, values, socket=socket)
    from cri.rpc.client import DaemonClient

    with DaemonClient(chosen.socket) as daemon:
        daemon.pin(image, pinned)


def _write_whole(path: Path, chunks: Iterator[bytes]) -> None:
    """Under another name first: what is at `path` is a whole archive or what was there before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with map_os_errors("cannot write archive", path=str(path)):
        try:
            with partial.open("xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def archive_bytes(source: str) -> Iterator[bytes]:
    """The archive at `source`: a file, a directory packed as a tar, or standard input.

    Raises:
        NotFound, Denied: it cannot be read.
        FailedPrecondition: a layout on standard input that is a terminal.
    """
    if source == "-":
        if sys.stdin.isatty():
            raise FailedPrecondition("there is no archive on a terminal", hint="name it with -i")
        yield from _file_chunks(0)
        return
    path = Path(source)
    with map_os_errors("cannot read archive", path=source):
        if path.is_dir():
            yield from _packed(path)
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with map_os_errors("cannot read archive", path=source):
            yield from _file_chunks(fd)
    finally:
        os.close(fd)


def _file_chunks(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, _CHUNK_BYTES):
        yield chunk


def _packed(directory: Path) -> Iterator[bytes]:
    """The plain files below `directory`; links and everything else are left out."""
    from imageservice.archives.writer import END, header, padding

    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb", buffering=0) as file:
            size_bytes = left = os.fstat(file.fileno()).st_size
            yield header(str(path.relative_to(directory)), size_bytes)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise FailedPrecondition("a file became shorter meanwhile", path=str(path))
                left -= len(chunk)
                yield chunk
            yield padding(size_bytes)
    yield END
