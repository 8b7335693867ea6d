"""Container Device Interface: devices by name, as their vendors' files on this node describe them.

    names      `vendor.com/class=device`; which names a container asks for
    document   one specification file, JSON or YAML, checked against CDI 0.3 to 1.1
    library    all files of the node; from names to the edits that make the devices appear

A vendor's file says what a container needs for a device: nodes, mounts, variables, groups, hooks.
Hooks are programs that run as root on the host, so the directories are trusted and must be root's
alone (`sandbox.host.dropins`). Names come from the request's own field and from annotations of the
*container* (`cdi.k8s.io/...`), which the kubelet writes for device plugins; annotations of a pod,
which its author writes, are never read for this.
"""
