"""Network configurations: files and texts become `NetworkConfig` values or `ConfigInvalid`.

`.conflist` files hold a list of plugins; `.conf` and `.json` hold one plugin, which becomes a list
of one, so that everything after this module knows lists only. A plugin's own keys are kept as they
are; of the keys the specification gives a meaning, each is checked here, once.

The `type` of a plugin (and of its address manager) names a program. It must be a plain file name:
with "../" in it, a configuration could run any program of the host (CVE-2021-20206).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cni.document import JsonObject, MalformedDocument, decode_object, encode, view
from cni.errors import ConfigInvalid
from sandbox.host.errors import PodwrightError, from_os_error
from sandbox.host.files import read_limited

if TYPE_CHECKING:
    from pathlib import Path

    from cni.document import JsonValue

#: Released versions of the specification, in order.
VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

#: A configuration without cniVersion is of the first version, which had no such key.
UNNAMED_VERSION: Final = "0.1.0"

CONFIG_LIMIT_BYTES: Final = 1024 * 1024

#: More plugins in one chain than anybody uses; each is a program run for each pod.
PLUGINS_LIMIT: Final = 32

_SUFFIXES: Final = frozenset({".conf", ".conflist", ".json"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_TYPE: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")

#: Keys that only a runtime may set when it runs a plugin; a file must not forge them.
_RUNTIME_KEYS: Final = frozenset({"runtimeConfig", "prevResult"})


def version_at_least(version: str, minimum: str) -> bool:
    """Whether `version` is `minimum` or later; both must be in VERSIONS."""
    return VERSIONS.index(version) >= VERSIONS.index(minimum)


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One plugin of a network: its program's name, what it declares, its document as written."""

    type: str
    capabilities: frozenset[str]
    document: JsonObject


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network: plugins in the order of ADD.

    Attributes:
        version: the version of the specification to speak, chosen from what the file offers.
        source: the file it came from; empty when it came from a saved text.
    """

    name: str
    version: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""

    def at_least(self, minimum: str) -> bool:
        """Whether the network speaks `minimum` or a later version."""
        return version_at_least(self.version, minimum)

    def to_json(self) -> str:
        """The text to save; `parse_network` of it gives the same network, without any file."""
        plugins: list[JsonValue] = [plugin.document for plugin in self.plugins]
        return encode(
            {
                "cniVersion": self.version,
                "name": self.name,
                "disableCheck": self.disable_check,
                "disableGC": self.disable_gc,
                "loadOnlyInlinedPlugins": True,
                "plugins": plugins,
            }
        ).decode()


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """A file that was passed over, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a directory holds: the network in force, if any, and the files that were passed over."""

    config: NetworkConfig | None
    problems: tuple[ConfigProblem, ...] = ()


class _NetworkKeys(msgspec.Struct):
    name: str = ""
    cniVersion: str | None = None
    cniVersions: list[str] | None = None
    disableCheck: bool | str | None = None
    disableGC: bool | str | None = None
    loadOnlyInlinedPlugins: bool | str | None = None


class _IpamKeys(msgspec.Struct):
    type: str | None = None


class _PluginKeys(msgspec.Struct):
    type: str = ""
    capabilities: dict[str, bool] | None = None
    ipam: _IpamKeys | None = None


def parse_network(text: bytes | str, *, source: str = "") -> NetworkConfig:
    """A network from a list of plugins, as in a `.conflist` file or as saved.

    Raises:
        ConfigInvalid: naming `source` and what is wrong.
    """
    network, _ = _parse_list(text, source)
    if not network.plugins:
        raise ConfigInvalid("network configuration has no plugins", path=source or None)
    return network


def parse_single(text: bytes | str, *, source: str = "") -> NetworkConfig:
    """A network of one plugin, as in a `.conf` or `.json` file.

    Raises:
        ConfigInvalid: naming `source` and what is wrong.
    """
    document, keys = _decode(text, source)
    if "type" not in document and "plugins" in document:
        raise ConfigInvalid(
            "network configuration is a list of plugins in a file for one plugin",
            path=source or None,
            hint="rename the file to end in .conflist",
        )
    plugin = _parse_plugin(document, source)
    return NetworkConfig(
        name=_network_name(keys.name, source),
        version=_choose_version(keys, source),
        plugins=(plugin,),
        source=source,
    )


def load_file(path: Path) -> NetworkConfig:
    """The network that a file describes; blocking.

    Raises:
        ConfigInvalid: unreadable, too large, or invalid.
    """
    text = _read(path)
    if path.suffix != ".conflist":
        return parse_single(text, source=str(path))
    network, only_inlined = _parse_list(text, str(path))
    if not only_inlined:
        network = _with_dropped_in(network, path.parent / network.name)
    if not network.plugins:
        raise ConfigInvalid("network configuration has no plugins", path=str(path))
    return network


def load_directory(directory: Path, *, name: str = "") -> Loaded:
    """The first valid network of a directory in lexical order of file names; blocking.

    Args:
        directory: need not exist; then there is no network, and no problem either.
        name: only networks of this name, if given.
    """
    try:
        paths = sorted(
            (p for p in directory.iterdir() if p.suffix in _SUFFIXES and not p.is_dir()),
            key=lambda p: p.name,
        )
    except FileNotFoundError:
        return Loaded(None)
    except OSError as error:
        failure = from_os_error(error, "directory of network configurations cannot be read")
        return Loaded(None, (ConfigProblem(str(directory), failure.message),))
    problems: list[ConfigProblem] = []
    for path in paths:
        try:
            network = load_file(path)
        except ConfigInvalid as error:
            problems.append(ConfigProblem(str(path), error.message))
            continue
        if not name or network.name == name:
            return Loaded(network, tuple(problems))
    return Loaded(None, tuple(problems))


def execution_config(
    network: NetworkConfig,
    plugin: PluginConfig,
    *,
    capability_arguments: JsonObject | None = None,
    previous: JsonObject | None = None,
    extra: JsonObject | None = None,
) -> bytes:
    """What one plugin reads on standard input.

    Name and version are the network's. Capability arguments reach a plugin only if it declared the
    capability, and the declaration itself is left out (specification, "Deriving execution
    configuration").
    """
    document = {key: value for key, value in plugin.document.items() if key != "capabilities"}
    for key in [k for k in document if k in _RUNTIME_KEYS or k.startswith("cni.dev/")]:
        del document[key]
    document["name"] = network.name
    document["cniVersion"] = network.version
    wanted: JsonObject = {
        key: value
        for key, value in (capability_arguments or {}).items()
        if key in plugin.capabilities
    }
    if wanted:
        document["runtimeConfig"] = wanted
    if previous is not None:
        document["prevResult"] = previous
    return encode({**document, **(extra or {})})


def _decode(text: bytes | str, source: str) -> tuple[JsonObject, _NetworkKeys]:
    try:
        document = decode_object(text)
        return document, view(document, _NetworkKeys)
    except MalformedDocument as error:
        raise _invalid(error.message, source) from error


def _parse_list(text: bytes | str, source: str) -> tuple[NetworkConfig, bool]:
    document, keys = _decode(text, source)
    raw = document.get("plugins")
    if raw is None:
        raw = []
    if not isinstance(raw, list):
        raise _invalid("plugins is not a list", source)
    plugins: list[PluginConfig] = []
    for number, entry in enumerate(raw):
        if not isinstance(entry, dict):
            raise _invalid(f"plugin {number} is not an object", source)
        plugins.append(_parse_plugin(entry, source))
    _check_count(plugins, source)
    network = NetworkConfig(
        name=_network_name(keys.name, source),
        version=_choose_version(keys, source),
        plugins=tuple(plugins),
        disable_check=_boolean("disableCheck", keys.disableCheck, source),
        disable_gc=_boolean("disableGC", keys.disableGC, source),
        source=source,
    )
    return network, _boolean("loadOnlyInlinedPlugins", keys.loadOnlyInlinedPlugins, source)


def _with_dropped_in(network: NetworkConfig, directory: Path) -> NetworkConfig:
    """The network with the plugins of `<network name>/*.conf` appended (specification 1.1)."""
    try:
        paths = sorted(p for p in directory.iterdir() if p.suffix == ".conf" and not p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return network
    except OSError as error:
        failure = from_os_error(error, "dropped-in plugins cannot be read")
        raise _invalid(failure.message, str(directory)) from error
    plugins = list(network.plugins)
    for path in paths:
        try:
            document = decode_object(_read(path))
        except MalformedDocument as error:
            raise _invalid(error.message, str(path)) from error
        plugins.append(_parse_plugin(document, str(path)))
    _check_count(plugins, str(directory))
    return NetworkConfig(
        name=network.name,
        version=network.version,
        plugins=tuple(plugins),
        disable_check=network.disable_check,
        disable_gc=network.disable_gc,
        source=network.source,
    )


def _parse_plugin(document: JsonObject, source: str) -> PluginConfig:
    try:
        keys = view(document, _PluginKeys)
    except MalformedDocument as error:
        raise _invalid(error.message, source) from error
    _check_type(keys.type, "plugin", source)
    if keys.ipam is not None and keys.ipam.type:
        _check_type(keys.ipam.type, "address manager", source)
    declared = frozenset(name for name, on in (keys.capabilities or {}).items() if on)
    return PluginConfig(keys.type, declared, document)


def _check_type(name: str, what: str, source: str) -> None:
    if not name:
        raise _invalid(f"{what} has no type", source)
    if not _TYPE.fullmatch(name) or name in {".", ".."}:
        raise _invalid(f"type of {what} is not a plain file name: {name[:80]!a}", source)


def _check_count(plugins: list[PluginConfig], source: str) -> None:
    if len(plugins) > PLUGINS_LIMIT:
        raise _invalid(f"more than {PLUGINS_LIMIT} plugins", source)


def _network_name(name: str, source: str) -> str:
    if not name:
        raise _invalid("network has no name", source)
    if not _NAME.fullmatch(name):
        raise _invalid(f"network name is not a plain word: {name[:80]!a}", source)
    return name


def _choose_version(keys: _NetworkKeys, source: str) -> str:
    """The latest version that the file offers and we speak."""
    offered = [v for v in (keys.cniVersion, *(keys.cniVersions or ())) if v]
    if not offered:
        return UNNAMED_VERSION
    spoken = [v for v in VERSIONS if v in offered]
    if not spoken:
        named = ascii(", ".join(offered)[:80])
        raise _invalid(f"CNI version {named} is not one of {', '.join(VERSIONS)}", source)
    return spoken[-1]


def _boolean(key: str, value: bool | str | None, source: str) -> bool:
    # The specification's examples had strings here for years; both are in use.
    if value is None or isinstance(value, bool):
        return bool(value)
    if value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise _invalid(f"{key} is neither true nor false", source)


def _read(path: Path) -> bytes:
    try:
        return read_limited(path, CONFIG_LIMIT_BYTES)
    except PodwrightError as error:
        raise _invalid(error.message, str(path)) from error


def _invalid(reason: str, source: str) -> ConfigInvalid:
    return ConfigInvalid(f"network configuration is invalid: {reason}", path=source or None)
