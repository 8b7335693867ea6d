"""The settings of section `image`; see `settings_table`, which the others are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri.setting import (
    Setting,
    boolean,
    choice,
    image_scopes,
    integer,
    optional_path,
    path,
    paths,
    seconds,
    words,
)
from imageservice.proxies import parse_proxy, split_exceptions
from imageservice.settings import ImageSettings
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageservice.forms import DriverChoice, LayerChoice
    from imageservice.proxies import ProxyServer

_IMAGES = ImageSettings()


def proxy(value: object) -> ProxyServer | None:
    """The URL of a proxy, or "" for none; an error does not quote it."""
    if not isinstance(value, str):
        raise InvalidArgument("expected the URL of a proxy")
    return parse_proxy(value) if value else None


IMAGE_ROOT = Setting("image", "root", optional_path, None, "images; empty: images in state_root")
ADDITIONAL_STORES = Setting(
    "image",
    "additional_stores",
    paths,
    _IMAGES.additional_stores,
    "image directories made elsewhere by podwright load --root, on disks that may be read-only and"
    " shared: their images can be run and their layers are not pulled; never written to",
)
KEEP_BLOBS = Setting(
    "image",
    "keep_blobs",
    boolean,
    _IMAGES.keep_blobs,
    "keep the compressed blobs of pulled layers, so that podwright save writes images with the"
    " registry's digests; they go with the last image that has the layer, all of them when this is"
    " switched off",
)
REGISTRY_DIRS = Setting(
    "image",
    "registry_config_dirs",
    paths,
    _IMAGES.registry_config_dirs,
    "certs.d directories; the first that knows a registry wins; read at each pull",
    reloadable=True,
)
AUTH_FILE = Setting(
    "image",
    "auth_file",
    optional_path,
    _IMAGES.auth_file,
    "credentials for pulls that bring none, as docker and podman write them; of root, mode 0600;"
    " read at each pull; empty: none",
)
NAMESPACED_AUTH_DIR = Setting(
    "image",
    "namespaced_auth_dir",
    optional_path,
    _IMAGES.namespaced_auth_dir,
    "the same for the pods of a namespace, in its place: NAMESPACE/config.json, or for one pull"
    " NAMESPACE-SHA256OFREPOSITORY.json; empty: none",
)
HELPER_DIRS = Setting(
    "image",
    "credential_helper_dirs",
    paths,
    _IMAGES.credential_helper_dirs,
    "where docker-credential-NAME programs are that such files name; none: none is run",
)
HTTPS_PROXY = Setting(
    "image",
    "https_proxy",
    proxy,
    None,
    "proxy for registries with https, http://[user:password@]host:port; default: HTTPS_PROXY of the"
    " daemon's environment; empty: none",
)
HTTP_PROXY = Setting(
    "image", "http_proxy", proxy, None, "the same for registries with plain http; HTTP_PROXY"
)
NO_PROXY = Setting(
    "image",
    "no_proxy",
    words,
    _IMAGES.proxies.exceptions,
    "registries that are asked directly: domains, .domains below, addresses, networks, each but a"
    " network with a port if wanted, or *; default: NO_PROXY; loopback always is",
)
LAYER_FORM: Setting[LayerChoice] = Setting(
    "image",
    "layer_form",
    choice("auto", "indexed", "tree"),
    _IMAGES.layer_form,
    "how new layers are kept: indexed: as the plain tar with an EROFS index, mounted (Linux 6.12);"
    " tree: as files; auto: indexed where this kernel can",
)
STORAGE_DRIVER: Setting[DriverChoice] = Setting(
    "image",
    "storage_driver",
    choice("auto", "overlay", "fuse-overlayfs", "native"),
    _IMAGES.storage_driver,
    "how root file systems of new containers are made of layers: overlay: mounted by the kernel;"
    " fuse-overlayfs: by that program; native: copied as a whole; auto: the first that works here",
)
FUSE_OVERLAYFS_PATH = Setting(
    "image",
    "fuse_overlayfs_path",
    path,
    _IMAGES.fuse_overlayfs_path,
    "the program of the storage driver fuse-overlayfs",
)
MAX_DOWNLOADS = Setting(
    "image",
    "max_concurrent_downloads",
    integer(1, 64),
    _IMAGES.max_concurrent_downloads,
    "layers of one pull fetched at once",
)
MAX_NODE_DOWNLOADS = Setting(
    "image",
    "max_node_downloads",
    integer(1, 4096),
    _IMAGES.max_node_downloads,
    "layers fetched at once on the whole node; further ones wait, and their waiting is no stall",
)
PULL_PROGRESS_TIMEOUT = Setting(
    "image",
    "pull_progress_timeout_s",
    seconds,
    _IMAGES.pull_progress_timeout_s,
    "a transfer that moves fewer than min_progress_bytes in this time is given up",
)
MIN_PROGRESS = Setting(
    "image", "min_progress_bytes", integer(1), _IMAGES.min_progress_bytes, "see above"
)
CONNECT_TIMEOUT = Setting(
    "image", "connect_timeout_s", seconds, _IMAGES.connect_timeout_s, "TCP and TLS to a registry"
)
MIRROR_CONNECT_TIMEOUT = Setting(
    "image",
    "mirror_connect_timeout_s",
    seconds,
    _IMAGES.mirror_connect_timeout_s,
    "the same while another host is left to try",
)
RESPONSE_TIMEOUT = Setting(
    "image", "response_timeout_s", seconds, _IMAGES.response_timeout_s, "headers of an answer"
)
MAX_CONNECTIONS = Setting(
    "image",
    "max_connections_per_host",
    integer(1, 256),
    _IMAGES.max_connections_per_host,
    "connections to one registry at once",
)
MAX_LAYER_CONNECTIONS = Setting(
    "image",
    "max_connections_per_layer",
    integer(1, 32),
    _IMAGES.max_connections_per_layer,
    "connections for one large layer where one alone is slow, among those to its registry;"
    " 1: never more than one",
)
RANGE_BYTES = Setting(
    "image",
    "range_bytes",
    integer(256 * 1024, 256 * 1024 * 1024),
    _IMAGES.range_bytes,
    "what each of these asks for at a time; as much of each is held in memory",
)
RANGE_MEMORY = Setting(
    "image",
    "range_memory_bytes",
    integer(0),
    _IMAGES.range_memory_bytes,
    "for that on the whole node; a layer for which three of them have no room has one connection",
)
PINNED_IMAGES = Setting(
    "image",
    "pinned_images",
    words,
    _IMAGES.pinned_images,
    "images that the kubelet's collection leaves alone; * stands for any characters",
    reloadable=True,
)
UNPACK_WORKERS = Setting(
    "image",
    "unpack_workers",
    integer(0, 64),
    _IMAGES.unpack_workers,
    "layers unpacked at once; 0: one for each processor, at most four",
)
UNPACK_IDLE = Setting(
    "image",
    "unpack_idle_s",
    seconds,
    _IMAGES.unpack_idle_s,
    "an idle unpack worker is kept so long",
)
UNPACK_PROGRESS_TIMEOUT = Setting(
    "image",
    "unpack_progress_timeout_s",
    seconds,
    _IMAGES.unpack_progress_timeout_s,
    "an unpack worker that does not move for this long is killed",
)
MAX_LAYER_BYTES = Setting(
    "image", "max_layer_bytes", integer(1), _IMAGES.max_layer_bytes, "plain bytes of one layer"
)
MAX_EXPANSION = Setting(
    "image",
    "max_expansion_ratio",
    integer(1),
    _IMAGES.max_expansion_ratio,
    "plain bytes for each compressed one, beyond the first GiB",
)
MAX_LAYER_ENTRIES = Setting(
    "image", "max_layer_entries", integer(1), _IMAGES.max_layer_entries, "entries of one layer"
)
KEEP_PARTIAL = Setting(
    "image",
    "keep_partial_s",
    seconds,
    _IMAGES.keep_partial_s,
    "a download that broke off is kept so long for the next try",
)
SIGNATURE_POLICY = Setting(
    "image",
    "signature_policy",
    optional_path,
    _IMAGES.signature_policy,
    "containers-policy.json(5) that says which images are accepted, at pulls and for containers;"
    " read anew when it changes; empty: all are",
)
SIGNATURE_POLICY_DIR = Setting(
    "image",
    "signature_policy_dir",
    optional_path,
    _IMAGES.signature_policy_dir,
    "directory whose NAMESPACE.json holds for the pods of that namespace instead; empty: none",
)
BLOCKED_REGISTRIES = Setting(
    "image",
    "blocked_registries",
    image_scopes,
    _IMAGES.blocked_registries,
    "registries, namespaces and repositories whose images are never pulled; *.DOMAIN for all below",
)

TABLE: Final[tuple[Setting[object], ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Setting)
)


def from_environment(environ: Mapping[str, str]) -> Iterator[tuple[Setting[object], object, str]]:
    """What the daemon's environment says of proxies: (setting, value, name of the variable).

    The upper-case name counts before the lower-case one, and an empty variable is none, as in Go.
    """
    for setting in (HTTPS_PROXY, HTTP_PROXY, NO_PROXY):
        upper = setting.name.upper()
        name = next((name for name in (upper, upper.lower()) if environ.get(name)), "")
        if name:
            text = environ[name].strip()
            yield setting, list(split_exceptions(text)) if setting is NO_PROXY else text, name
