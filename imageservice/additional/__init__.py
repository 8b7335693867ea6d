"""Additional stores: images that were put on a disk beforehand, and are used without being copied.

A store is the image directory that a podwright has made elsewhere (`podwright load --root`), on a
disk that may be read-only and shared by many nodes: a node whose image has the common base images
baked in pulls only what is missing. This node writes nothing there, ever, and so everything that
changes stays in its own store: names that move, leases of containers, places where layers are seen.

    reading ── the catalog, copied into memory once; the disk is asked again for files only
    stores ── which of the configured ones can be used, and why the others cannot

What of them others see: layers by `snapshots.ledger` (a pull finds them committed, a container's
root is made of them), images by `holdings`, documents by `content`, signatures by `trust.kept`.

Decisions:

- A store that was not closed in order is refused: its log cannot be replayed on a read-only disk,
  and its layers may not be whole. So is one that others than root can write to.
- A store that cannot be used costs its images and nothing else: the daemon starts, says so, and
  what is recorded of images that need its layers is kept until it is back.
- An image that is only there is shown as pinned, because removing it frees nothing; an image that
  is here as well follows the rules of our own, and shows up as theirs once ours is gone.
- ImageFsInfo is about our own disk alone: the kubelet frees space by what it reads there.
"""
