"""Images: from a reference in a registry to a root file system that can be mounted.

The model. A *reference* is resolved to a *manifest*, directly or through an index that offers one
manifest for each platform. The manifest names a *config* and *layers*. The config's digest is the
image's *id*, the same in every API; its diffIDs, lowest first, are the image's *chain*. A *layer*
is kept once on a node, named by its diffID, whatever blobs of whatever registries it came from.
*Names* (tags and repo digests) point to images; a *lease* under a container's id keeps layers while
that container exists, with or without the image.

    service ── the façade: pull, list, status, remove, fs_info, prepare_rootfs
      ├─ pull, layers ── the pipeline; flights: one download for all who wait
      │    ├─ keyrings ── the node's own credentials, by namespace and host
      │    ├─ registry/ ── the wire: hosts, tokens, transfers; believes nothing
      │    ├─ content ── manifests and configs by digest; downloads that resume
      │    └─ unpack/ ── worker processes that turn a blob into a directory tree
      ├─ snapshots/ ── layers on disk, overlayfs mounts of them
      ├─ loading, saving ── archives/: images that come and go in files
      ├─ inventory, catalog ── images and names, in memory and in SQLite
      ├─ holdings, additional/ ── the same with the images of read-only stores beside them
      ├─ blobs ── compressed layers, where they are to be kept
      └─ collect ── what nobody refers to any more

Rules kept everywhere here:

- A blob is used only after its size and digest were right, a layer only after its diffID was.
- A layer is visible only after its data is on disk: sync, rename, then the row.
- Whatever touches bytes of an image runs in a worker that can be killed, below a descriptor.
- The work of a pull lives as long as somebody waits for it; what it finished is kept.
- Answers come from memory; memory is decided on the event loop, the disk follows in threads.
- Only `sandbox.host` is imported from elsewhere; `cri` passes in everything else.
"""
