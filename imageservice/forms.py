"""The forms in which a layer is kept, the names of their files, and what is made of layers."""

from __future__ import annotations

from typing import Final, Literal

#: "tree": a directory with the layer's files and overlayfs' marks. "indexed": a directory with the
#: layer's plain tar, whose SHA-256 is the diffID, and an EROFS index over it that can be mounted.
LayerForm = Literal["tree", "indexed"]

TAR_NAME: Final = "layer.tar"
INDEX_NAME: Final = "index.erofs"

#: What an operator may ask for: "auto" is indexed where this kernel can mount an index.
LayerChoice = Literal["auto", "indexed", "tree"]

#: How a root file system is made of layers: mounted by the kernel's overlayfs, served by the
#: program fuse-overlayfs, or copied as a whole for each container.
DriverName = Literal["overlay", "fuse-overlayfs", "native"]

#: What an operator may ask for: "auto" is the first of them that works on the node.
DriverChoice = Literal["auto", "overlay", "fuse-overlayfs", "native"]
