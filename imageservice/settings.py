"""What the operator may set about images, as one frozen value; defaults are the documented ones.

`cri/config.py` fills it from its table; nothing in this package reads a configuration file of the
daemon. Registries (mirrors, certificates) are not here: they live in `certs.d`, which is read anew
for each pull so that a change needs no restart (`registry/hosts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imageservice.proxies import Proxies

if TYPE_CHECKING:
    from imageservice.forms import DriverChoice, LayerChoice

#: The program of the storage driver of that name, as Debian and Fedora install it.
FUSE_OVERLAYFS: Final = Path("/usr/bin/fuse-overlayfs")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently one host is asked again; data, so that tests can state it.

    Attributes:
        attempts: tries in all against one host for one request; a transfer that moved forward
            starts counting anew.
        patience_s: no further try is begun once the tries took this long together: five waits for
            a host that never answers would be five timeouts.
        first_delay_s: wait before the second try; doubled each time.
        max_delay_s: the longest wait of our own making.
        jitter: part of each wait that is random (0 to 1), so that a node full of pods does not
            knock in step.
        retry_after_cap_s: the longest Retry-After that is honoured; a longer one ends the try.
    """

    attempts: int = 5
    patience_s: float = 60.0
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    jitter: float = 0.5
    retry_after_cap_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Everything the image service needs to be told.

    Attributes:
        root: directory of catalog, content, layers and ingests (0700).
        registry_config_dirs: `certs.d` directories; the first that knows a registry wins.
        auth_file: credentials for pulls that bring none, as docker writes them; None: none.
        namespaced_auth_dir: the same by namespace; see `keyrings`.
        credential_helper_dirs: where the programs are that such files name; none: none is run.
        proxies: through which HTTP proxy registries are asked; helpers are told as well.
        layer_form: how layers are kept; see `LayerChoice`. Those that are there stay as they are.
        storage_driver: how root file systems are made of layers; see `snapshots.drivers`.
        fuse_overlayfs_path: the program, for the driver of that name.
        max_concurrent_downloads: layers of one pull fetched at once.
        max_node_downloads: layers fetched at once on the whole node, whatever pulls they are of.
            Those of archives are not counted. A registry that is silent keeps its places until
            `pull_progress_timeout_s`, so this is far above what one pull has.
        pull_progress_timeout_s: a transfer that moves fewer than `min_progress_bytes` in this time
            is given up; there is no limit for a whole pull.
        min_progress_bytes: see above. containerd's rule of "no byte at all" lets a drip of one byte
            a second hold a pull for ever (containerd#11650).
        connect_timeout_s: TCP and TLS handshake with a registry.
        mirror_connect_timeout_s: the same while another host is left to try.
        response_timeout_s: from the request to the headers of a manifest or token answer.
        retry: see `RetryPolicy`.
        max_connections_per_host: connections kept to one registry at once.
        max_connections_per_layer: connections for one large layer, where one alone is slow; see
            `registry.pieces`. 1: never more.
        range_bytes: what each of these asks for; as much of each is held in memory.
        range_memory_bytes: for all of them on the whole node. A layer for which there is not room
            for three ranges goes over one connection; the default has room for three layers of
            four connections, all that one pull fetches at once.
        pinned_images: references or ids that garbage collection of the kubelet must leave alone;
            `*` stands for any characters.
        unpack_workers: layers unpacked at once on the whole node; 0 means one for each processor,
            but at most four: creating files is the kernel's work, and more of it at once is slower.
        unpack_idle_s: how long an idle unpack worker is kept.
        unpack_progress_timeout_s: a worker that does not move for this long is killed.
        max_layer_bytes: plain bytes of one layer.
        max_expansion_ratio: plain bytes for each compressed one, beyond the first GiB.
        max_layer_entries: files, directories and links of one layer.
        keep_partial_s: how long a download that broke off is kept for the next try.
        signature_policy: containers-policy.json(5); None: every image is accepted. There is no
            default path on purpose: /etc/containers/policy.json is other programs' file on many
            nodes, and what a node runs must not change with it unasked.
        signature_policy_dir: NAMESPACE.json in it is the policy for that namespace's pods.
        additional_stores: image directories of other podwrights, only read; see `additional`.
        keep_blobs: compressed blobs are kept after unpacking, to be saved as they were.
        blocked_registries: hosts, namespaces, repositories and `*.DOMAIN` that are never asked.
    """

    root: Path = Path("/var/lib/podwright/images")
    registry_config_dirs: tuple[Path, ...] = (
        Path("/etc/podwright/certs.d"),
        Path("/etc/containerd/certs.d"),
    )
    auth_file: Path | None = Path("/etc/podwright/auth.json")
    namespaced_auth_dir: Path | None = Path("/etc/podwright/auth")
    credential_helper_dirs: tuple[Path, ...] = ()
    proxies: Proxies = field(default_factory=Proxies)
    layer_form: LayerChoice = "auto"
    storage_driver: DriverChoice = "auto"
    fuse_overlayfs_path: Path = FUSE_OVERLAYFS
    max_concurrent_downloads: int = 3
    max_node_downloads: int = 64
    pull_progress_timeout_s: float = 300.0
    min_progress_bytes: int = 256 * 1024
    connect_timeout_s: float = 30.0
    mirror_connect_timeout_s: float = 5.0
    response_timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_connections_per_host: int = 32
    max_connections_per_layer: int = 4
    range_bytes: int = 4 * 1024 * 1024
    range_memory_bytes: int = 64 * 1024 * 1024
    pinned_images: tuple[str, ...] = ()
    unpack_workers: int = 0
    unpack_idle_s: float = 60.0
    unpack_progress_timeout_s: float = 300.0
    max_layer_bytes: int = 256 * 1024**3
    max_expansion_ratio: int = 200
    max_layer_entries: int = 4_000_000
    keep_partial_s: float = 3600.0
    signature_policy: Path | None = None
    signature_policy_dir: Path | None = None
    additional_stores: tuple[Path, ...] = ()
    keep_blobs: bool = False
    blocked_registries: tuple[str, ...] = ()
