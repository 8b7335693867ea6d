"""Layers on disk and root file systems made of them, behind one contract (`snapshotter`).

overlay ── the store: stages, publishes, verifies and removes layers
  ├─ ledger, places ── which layers there are, who holds them, where each is seen as a directory
  ├─ drivers ── what a root file system is made of layers by, tried at the start:
  │    overlayfs · fuse-overlayfs (`sandbox.host.fuse` serves it) · a copy (`merged`, `copying`)
  ├─ root, upper ── options of the first two, and their writable directories
  └─ probe, indexed ── what this kernel can do
"""
