"""Which images there are, and what is in them.

Three sets: what a first pod needs, what critest asks for (the names are the ones it has compiled
in), and what hack/bench pulls. All are made of Debian's static busybox and of the small programs
beside this file, because there is no registry to fetch the originals from. What the tests look at
is kept: users and groups, set-user-id bits, process titles, ports, pid files.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

from tests.kit.oci import DOCKER, OCI, Entry, Image, ImageConfig, Layer, make_image, make_layer

PROGRAMS: Final = Path(__file__).parent / "programs"

E2E: Final = "e2e-test-images"
STAGING: Final = "k8s-staging-cri-tools"

PASSWD: Final = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP: Final = """\
root:x:0:
daemon:x:1:
www-data:x:33:
nogroup:x:65534:
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image under one or more names ("repository:tag", without a registry host)."""

    names: tuple[str, ...]
    make: Callable[[], Image]


@cache
def _busybox() -> tuple[bytes, tuple[str, ...]]:
    path = shutil.which("busybox")
    if path is None:
        raise FileNotFoundError("busybox is not installed; apt-get install busybox-static")
    listed = subprocess.run([path, "--list"], check=True, capture_output=True, text=True).stdout
    return Path(path).read_bytes(), tuple(sorted(set(listed.split()) - {"busybox"}))


@cache
def base_layer(*, own_shell: bool = True) -> Layer:
    """A small root file system: busybox, its commands as hard links, users and groups.

    Hard links and not symbolic ones: masking /bin/ls must mask ls and leave the others alone. For
    the same reason a program of ours stands before the shell where tests look (programs/sh.c).
    """
    program, commands = _busybox()

    def entries() -> Iterator[Entry]:
        for directory in ("bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr"):
            yield Entry(directory, mode=0o700 if directory == "root" else 0o755)
        for directory in ("usr/bin", "usr/sbin", "var", "var/run", "var/www", "var/log"):
            yield Entry(directory)
        yield Entry("tmp", mode=0o1777)
        yield Entry("bin/busybox", content=program)
        for command in commands:
            if command == "sh" and own_shell:
                yield Entry("bin/sh", content=compiled("sh"))
            else:
                yield Entry(f"bin/{command}", hardlink="bin/busybox")
        for script in ("pgrep", "ipcs"):
            if script not in commands:
                yield Entry(f"usr/bin/{script}", content=(PROGRAMS / script).read_bytes())
        yield Entry("etc/passwd", mode=0o644, content=PASSWD.encode())
        yield Entry("etc/group", mode=0o644, content=GROUP.encode())
        yield Entry("etc/hosts", mode=0o644, content=b"127.0.0.1 localhost\n")

    return make_layer(entries())


@cache
def compiled(name: str) -> bytes:
    """A program of this folder as a static executable."""
    with tempfile.TemporaryDirectory(prefix="podwright-kit-") as directory:
        output = Path(directory) / name
        subprocess.run(
            ["gcc", "-Wall", "-Os", "-static", "-s", "-o", output, PROGRAMS / f"{name}.c"],
            check=True,
        )
        return output.read_bytes()


def _busybox_image(*, own_shell: bool = True) -> Image:
    layer = base_layer(own_shell=own_shell)
    return make_image([layer], ImageConfig(command=["sh"]), with_index=True)


def _marked(marker: str) -> Image:
    """The base with one more file, so that images of different names are different images."""
    extra = make_layer([Entry(marker, mode=0o644, content=b"")])
    return make_image([base_layer(), extra], ImageConfig(command=["sh"]), flavor=DOCKER)


def _with_user(user: str) -> Image:
    return make_image([base_layer()], ImageConfig(command=["sh"], user=user), flavor=DOCKER)


def _predefined_group() -> Image:
    passwd = PASSWD + "default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n"
    group = GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    users = make_layer(
        [
            Entry("etc/passwd", mode=0o644, content=passwd.encode()),
            Entry("etc/group", mode=0o644, content=group.encode()),
            Entry("home/default-user", uid=1000, gid=1000),
        ]
    )
    return make_image([base_layer(), users], ImageConfig(command=["sh"], user="1000"))


def _web_server(path: str, *arguments: str, stop_signal: str) -> Image:
    server = make_layer([Entry(path, content=compiled("webserver"))])
    config = ImageConfig(entrypoint=[f"/{path}", *arguments], stop_signal=stop_signal)
    return make_image([base_layer(), server], config, with_index=True)


def _nginx(port: int) -> Image:
    return _web_server(
        "usr/sbin/nginx",
        *("--title", "nginx: master process nginx -g daemon off;"),
        *("--pid-file", "/var/run/nginx.pid", "--port", str(port)),
        stop_signal="SIGQUIT",
    )


def _httpd() -> Image:
    return _web_server("usr/sbin/httpd", "--port", "80", stop_signal="SIGWINCH")


def _no_new_privileges() -> Image:
    program = make_layer([Entry("nnp", mode=0o4755, content=compiled("nnp"))])
    return make_image([base_layer(), program], ImageConfig(entrypoint=["/nnp"]))


def _pause() -> Image:
    program = make_layer([Entry("pause", content=compiled("pause"))])
    config = ImageConfig(entrypoint=["/pause"], user="65535:65535")
    return make_image([program], config, flavor=DOCKER, with_index=True)


FIRST_POD: Final = (
    Recipe(("busybox:latest", "library/busybox:latest"), partial(_busybox_image, own_shell=False)),
)

CRITEST: Final = (
    Recipe((f"{E2E}/busybox:1.29-2",), _busybox_image),
    Recipe((f"{E2E}/nginx:1.14-2",), partial(_nginx, 80)),
    Recipe((f"{E2E}/httpd:2.4.39-4",), _httpd),
    Recipe((f"{E2E}/nonewprivs:1.3",), _no_new_privileges),
    # The tag is what containerd and critest ask for; other runtimes may be configured to it.
    Recipe(("pause:3.9",), _pause),
    *(
        Recipe((f"{STAGING}/hostnet-nginx-{architecture}:latest",), partial(_nginx, 12003))
        for architecture in ("amd64", "arm64")
    ),
    *(
        Recipe(
            (f"{STAGING}/test-image-{name}:latest",),
            partial(_marked, f"test-image-{name}"),
        )
        for name in ("1", "2", "3", "latest", "digest")
    ),
    Recipe((f"{STAGING}/test-image-tag:test",), partial(_marked, "test")),
    Recipe((f"{STAGING}/test-image-tag:all",), partial(_marked, "all")),
    Recipe(
        tuple(f"{STAGING}/test-image-tags:{tag}" for tag in (1, 2, 3)),
        partial(_marked, "same-image"),
    ),
    *(
        Recipe((f"{STAGING}/test-image-{name}:latest",), partial(_with_user, user))
        for name, user in (
            ("user-uid", "1002"),
            ("user-username", "www-data"),
            ("user-uid-group", "1003:1004"),
            ("user-username-group", "www-data:1004"),
        )
    ),
    Recipe((f"{STAGING}/test-image-predefined-group:latest",), _predefined_group),
)


def _log_like_text(seed: int, size_bytes: int) -> bytes:
    """Text that compresses about as well as installed software does (5 to 6 times)."""
    generator = random.Random(seed)
    words = [generator.randbytes(generator.randint(1, 4)).hex() for _ in range(4000)]
    lines: list[str] = []
    written = 0
    while written < size_bytes:
        head = " ".join(generator.choices(words[:200], k=3))
        line = f"{head} /usr/share/{generator.choice(words)}/module.py: value={written}\n" * 2
        lines.append(line)
        written += len(line)
    return "".join(lines).encode()[:size_bytes]


def _many_files(
    layers: int, files_per_layer: int, file_bytes: Sequence[int], *, seed: int
) -> Image:
    """Base plus `layers` layers of files whose sizes are drawn from `file_bytes`."""
    pool = _log_like_text(seed, 8 << 20)
    generator = random.Random(seed)

    def entries(layer: int) -> Iterator[Entry]:
        yield Entry(f"data{layer}")
        for number in range(files_per_layer):
            if number % 100 == 0:
                yield Entry(f"data{layer}/{number // 100:04}")
            size = generator.choice(file_bytes)
            start = generator.randrange(len(pool) - size)
            path = f"data{layer}/{number // 100:04}/file{number % 100:02}"
            yield Entry(path, mode=0o644, content=pool[start : start + size])

    made = [make_layer(entries(layer)) for layer in range(layers)]
    return make_image(made, ImageConfig(command=["/nothing"]), flavor=OCI)


#: 245 MB in 15,000 files and 5 layers; 30,000 files of 1 KiB in one layer.
BENCH: Final = (
    Recipe(
        ("bench/large:1",),
        lambda: _many_files(5, 3000, (1024, 4096, 8192, 16384, 51_000), seed=1),
    ),
    Recipe(("bench/many-files:1",), lambda: _many_files(1, 30_000, (1024,), seed=2)),
)

SETS: Final = {"first-pod": FIRST_POD, "critest": CRITEST, "bench": BENCH}
