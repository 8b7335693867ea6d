"""From a blob that is still arriving to a layer, in a process that can be killed.

    blob file ─ compression ─► plain tar ─┬─ hash ─► diffID
                                          └─ archive ─► Member ─ entries ─► Entry ─ apply ─► tree

- `feed`, `blob`: how much of the blob is there; reading behind its download, hashing it.
- `compression`: what the bytes are by their magic numbers, and a bounded stream of plain bytes.
- `archive`: the tar grammar (ustar, pax, GNU); bounded, bytes in, `Member` values out.
- `entries`: what a member means for a layer: path rules, whiteouts, types; pure.
- `apply`: carries entries out below one directory descriptor, never following a link of the image.
- `worker`: the process that does all of it for one layer at a time, spoken to in JSON lines.
- `turns`: which layers may run, and which may have a worker.
- `pool`: keeps a few workers, kills one that makes no progress, ends idle ones.

A layer is unpacked alone, without the layers below it: whiteouts become what overlayfs reads
(character device 0:0, `trusted.overlay.opaque`), so any number of layers can be unpacked at once.
Nothing here is durable or visible: the snapshotter syncs and publishes the tree.
"""
