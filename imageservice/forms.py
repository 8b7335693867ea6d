"""The two forms in which a layer is kept on a node, and the names of their files."""

from __future__ import annotations

from typing import Final, Literal

#: "tree": a directory with the layer's files and overlayfs' marks. "indexed": a directory with the
#: layer's plain tar, whose SHA-256 is the diffID, and an EROFS index over it that can be mounted.
LayerForm = Literal["tree", "indexed"]

TAR_NAME: Final = "layer.tar"
INDEX_NAME: Final = "index.erofs"

#: What an operator may ask for: "auto" is indexed where this kernel can mount an index.
LayerChoice = Literal["auto", "indexed", "tree"]
