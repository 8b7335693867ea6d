"""Images in a file: what `podwright load` reads and `podwright save` writes.

    archive ── scan ──► table ── formats ──► images: names, manifest, config, layers
                                                │
                             source: the images as a registry would answer ──► the ordinary pull
    image on the node ── writer ──► OCI layout or docker archive, the same bytes every time

An archive is pulled from, as a registry is: its layers go through the same workers, checks and
commits, and what is wrong with a blob is found where it is found for a registry.

No name in an archive ever becomes a path: `scan` lists what is in it and where its bytes lie, and
everything else looks names up in that list. So there is nothing for `../` or a link to lead to.
"""
