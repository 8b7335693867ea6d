"""JSON of strangers that every reader reads alike, or that is refused.

The digest names bytes, and several programs read them: a registry, a scanner, a signer, we. Where
two of them could see different documents (a key twice, keys that differ only in case), what was
checked is not what runs. So those are refused here, before the typed decoder sees the bytes.
"""

from __future__ import annotations

import json
from typing import Final

from imageservice.errors import ManifestInvalid, TooLarge

#: Objects and lists of one document, brackets in its strings counted too. An index has three for
#: each platform, a manifest one for each layer; 4 MiB of `{},` would take half a second on the
#: event loop and 130 MiB.
MAX_JSON_NODES: Final = 100_000
#: Keys with a meaning to someone: none may appear twice, in whatever case.
_STRUCTURAL: Final = frozenset(
    {
        "schemaversion", "mediatype", "artifacttype", "manifests", "layers", "fslayers", "config",
        "digest", "size", "urls", "platform", "subject", "rootfs", "diff_ids", "os", "architecture",
        "variant", "entrypoint", "cmd", "user", "env", "workingdir", "volumes", "type",
    }
)  # fmt: skip


def strict_object(body: bytes, *, limit_bytes: int, what: str) -> dict[str, object]:
    """The keys of a JSON object that no two readers can read differently.

    Raises:
        TooLarge: over `limit_bytes`, or of more than MAX_JSON_NODES parts; not parsed then.
        ManifestInvalid: not JSON, not an object, a key twice.
    """
    if len(body) > limit_bytes:
        raise TooLarge(f"{what} is larger than {limit_bytes} bytes", size_bytes=len(body))
    if body.count(b"{") + body.count(b"[") > MAX_JSON_NODES:
        raise TooLarge(f"{what} has more than {MAX_JSON_NODES} parts", size_bytes=len(body))
    try:
        # The standard decoder, because it alone shows every pair, duplicates included.
        document = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"{what} is not valid JSON: {reason(error)}") from error
    if not isinstance(document, dict):
        raise ManifestInvalid(f"{what} is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    if all(isinstance(value, str) for value in result.values()):
        return result  # labels and annotations: free keys, where case may well tell them apart
    folded = [key.lower() for key in result if key.lower() in _STRUCTURAL]
    if len(set(folded)) != len(folded):
        raise ValueError("keys that differ only in case")
    return result


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def reason(error: Exception) -> str:
    """The parser's words, bounded and escaped: they may quote the document."""
    return ascii(str(error) or type(error).__name__)[1:-1][:200]
