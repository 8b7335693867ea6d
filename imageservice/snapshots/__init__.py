"""Layers on disk and root file systems made of them, behind one contract (`snapshotter`).

`ledger` is what every driver shares: which layers there are and who holds them, in SQLite with all
answers from memory. `overlay` is the driver that keeps a layer as a directory tree and composes
with overlayfs. A driver decides what form a staged layer takes and what mounts compose it.
"""
