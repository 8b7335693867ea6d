"""What the command line shows of images: the list, and layers on their way.

Each layer has one line with two bars, because a layer is unpacked while it is fetched: how much has
come, and how much of that is on the disk. Where standard error is no terminal, a line is written
when a layer begins or ends a stage instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table

from cri.convert_image import STORES_ANNOTATION
from cri.rpc.archives import SaveHead
from cri.rpc.progress import updated
from cri.rpc.verify import FoundBad
from sandbox.host.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.progress import Task, TaskID

    from cri.rpc.archives import LoadedImage, LoadUpdate
    from cri.rpc.client import ImageList
    from cri.rpc.progress import LayerUpdate, PullUpdate
    from cri.rpc.verify import VerifyUpdate
    from imageservice.findings import Checked, Finding
    from imageservice.progress import Progress as LayerProgress

#: A digest as people recognise it.
_SHORT: Final = 12
_BAR_WIDTH: Final = 20


class _UnpackBar(ProgressColumn):
    """The second bar of a layer's line."""

    def render(self, task: Task) -> ProgressBar:
        """How much of the blob is on the disk."""
        done: int = task.fields["unpacked"]
        return ProgressBar(total=task.total or 1.0, completed=done, width=_BAR_WIDTH)


class Layers:
    """Lines of layers on standard error; a context manager."""

    def __init__(self, console: Console | None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}
        self._known: dict[str, LayerUpdate] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[stage]:<9}"),
            BarColumn(_BAR_WIDTH),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            _UnpackBar(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Layers:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, progress: LayerProgress) -> None:
        """What a pull without a daemon reports itself."""
        layer = self._known[progress.layer] = updated(self._known.get(progress.layer), progress)
        self.show([layer])

    def show(self, layers: Iterable[LayerUpdate]) -> None:
        """Bring the lines up to date."""
        for layer in layers:
            short = layer.id.partition(":")[2][:_SHORT]
            if not self._console.is_terminal:
                self._tell(short, layer)
                continue
            if layer.id not in self._bars:
                self._bars[layer.id] = self._progress.add_task(
                    short, total=None, stage=layer.stage, unpacked=0
                )
            self._progress.update(
                self._bars[layer.id],
                stage=layer.stage,
                completed=layer.fetched_bytes,
                total=layer.total_bytes or None,
                unpacked=layer.unpacked_bytes,
            )

    def _tell(self, short: str, layer: LayerUpdate) -> None:
        if self._stages.get(short) in (layer.stage, "done", "exists"):
            return
        if layer.stage == "fetching" and self._stages.get(short) == "unpacking":
            return  # both at once: the stage does not go back
        self._stages[short] = layer.stage
        size = f" {decimal(layer.total_bytes)}" if layer.total_bytes else ""
        self._console.print(f"{short} {layer.stage}{size}", highlight=False)


def show_pull(updates: Iterable[PullUpdate], console: Console | None = None) -> str:
    """Show layers on standard error until the pull has ended; the image's id."""
    image = ""
    with Layers(console) as lines:
        # To the end of the stream: who leaves before has called it off, as the daemon sees it.
        for update in updates:
            lines.show(update.layers)
            image = update.image_ref or image
    if image:
        return image
    raise Internal("the daemon ended the pull without a result", hint="see the daemon's log")


def show_load(updates: Iterable[LoadUpdate], console: Console | None = None) -> list[str]:
    """Show layers on standard error until the load has ended; a line for each image."""
    images: list[LoadedImage] = []
    with Layers(console) as lines:
        for update in updates:
            lines.show(update.layers)
            images += update.images
    if images:
        return [" ".join((image.id, *image.tags)) for image in images]
    raise Internal("the daemon ended the load without a result", hint="see the daemon's log")


def show_save(messages: Iterator[bytes], console: Console | None = None) -> Iterator[bytes]:
    """The archive's bytes, with a bar on standard error where that is a terminal."""
    console = console or Console(stderr=True)
    head = msgspec.json.decode(next(messages, b"{}"), type=SaveHead)
    for name in head.remade:
        text = f"{name}: layers as plain tars, its blobs are not kept (image.keep_blobs)"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    done = 0
    with Progress(
        TextColumn("saving"),
        BarColumn(_BAR_WIDTH),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("saving", total=head.total_bytes)
        for chunk in messages:
            done += len(chunk)
            progress.update(bar, completed=done)
            yield chunk
    if done != head.total_bytes:
        raise Internal("the daemon sent another number of bytes than it said", received_bytes=done)


class VerifyBar:
    """A bar on standard error, where that is a terminal; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("layers", total=None)

    def __enter__(self) -> VerifyBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: Checked | VerifyUpdate) -> None:
        """Bring it up to date."""
        self._progress.update(
            self._bar,
            description=f"layers {done.layers}/{done.of_layers}",
            completed=done.done_bytes,
            total=done.total_bytes,
        )


def show_verify(updates: Iterable[VerifyUpdate], console: Console | None = None) -> list[FoundBad]:
    """A bar while the daemon looks; what was found."""
    findings: list[FoundBad] | None = None
    with VerifyBar(console) as bar:
        for update in updates:
            if update.findings is not None:
                findings = update.findings
            else:
                bar.show(update)
    if findings is None:
        raise Internal("the daemon ended the check without a result", hint="see the daemon's log")
    return findings


def found_bad(findings: Iterable[Finding]) -> list[FoundBad]:
    """What was found without a daemon, as if it had said it."""
    return [FoundBad(f.kind, f.what, f.problem, list(f.images), f.outcome) for f in findings]


def findings_text(findings: Sequence[FoundBad], *, as_json: bool = False) -> list[str]:
    """Lines, or one JSON document."""
    if as_json:
        return [msgspec.json.format(msgspec.json.encode(findings)).decode()]
    lines: list[str] = []
    for finding in findings:
        about = f" ({', '.join(finding.images)})" if finding.images else ""
        lines.append(f"{finding.kind} {finding.what}: {finding.problem}{about}")
        if finding.outcome:
            lines.append(f"  → {finding.outcome}")
    return lines or ["nothing is wrong"]


def images_json(images: ImageList) -> str:
    """The list as JSON."""
    rows = [
        {
            "id": image.id,
            "tags": list(image.repo_tags),
            "digests": list(image.repo_digests),
            "size_bytes": image.size,
            "pinned": image.pinned,
            "additional_stores": image.spec.annotations.get(STORES_ANNOTATION, ""),
        }
        for image in images.images
    ]
    return msgspec.json.format(msgspec.json.encode(rows)).decode()


def show_images(
    images: ImageList, *, digests: bool = False, console: Console | None = None
) -> None:
    """The list as a table: a line for each name."""
    console = console or Console()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    stores = {i.id: i.spec.annotations.get(STORES_ANNOTATION, "") for i in images.images}
    columns = ["IMAGE", *(("DIGEST",) if digests else ()), "ID", "SIZE", ""]
    columns += ["ADDITIONAL STORE"] if any(stores.values()) else []
    for name in columns:
        grid.add_column(name, no_wrap=True)
    for image in images.images:
        short = image.id.partition(":")[2][:_SHORT]
        facts = (short, decimal(image.size), "pinned" if image.pinned else "", stores[image.id])
        for name, digest in _names(image.repo_tags, image.repo_digests):
            row = (name, *((digest,) if digests else ()), *facts)
            grid.add_row(*row[: len(columns)])
    if not console.is_terminal:
        console.width = _WIDE
    console.print(grid)


#: What reads a table through a pipe wants whole words.
_WIDE: Final = 400


def _names(tags: Sequence[str], digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(tag, digest) for each name; a tag's digests are those of its repository."""
    named: set[str] = set()
    for tag in tags:
        repository = tag.rpartition(":")[0]
        found = [d.rpartition("@")[2] for d in digests if d.rpartition("@")[0] == repository]
        named.add(repository)
        yield tag, ", ".join(found)
    for digest in digests:
        repository, _, value = digest.rpartition("@")
        if repository not in named:
            yield f"{repository}:<none>", value
    if not tags and not digests:
        yield "<none>", ""
