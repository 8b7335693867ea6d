"""Pods and containers on this node: the engine below the CRI, which knows nothing of gRPC.

What a pod is here (`pods`): a directory with its small files, a /dev/shm, namespaces pinned by bind
mounts, and a pause process (catatonit) that reaps zombies. What a container is (`containers`,
`endings`): a writable layer, a mounted root file system, an OCI bundle, a conmon of its own, and an
init process made by an OCI runtime (`runtime`, `monitor`).

Everything follows from four ideas:

- Values. `model` has frozen structs for what was asked for and what is known; `states` what may
  follow what. A changed object is a new value.
- Intent before effect. `store` writes a record before anything is made; every name on the machine
  derives from the id (`paths`), so leavings are found without the record (`sweep`, `leavings`).
- Teardown is one list of idempotent steps (`steps`), used to undo a creation, to remove, and to
  recover (`recovery` decides, purely).
- Documents are composed by pure functions (`spec`, `security`, `users`) from what `lookup` found on
  the host; `compose` brings both together.

Below all of it lies `host`, the only place that touches the machine.
"""
