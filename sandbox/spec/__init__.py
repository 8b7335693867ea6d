"""From what a client asked for to the OCI document: pure functions, values in, values out.

No file is read here and no time is taken. Whatever must be looked up (a real path, a device
number, the bytes of passwd, a pinned namespace, what the kernel supports) the caller has looked
up before and hands in as `inputs.PodInputs` or `inputs.ContainerInputs`; `build.pause_spec` and
`build.container_spec` are the only two ways to compose a document. So one golden file per case
says everything about a container, and a test needs neither root nor a runtime.

    inputs      what the caller must resolve, field by field
    build       the two documents
    process     argv, environment, working directory, limits, OOM score
    mounts      default mounts, CRI mounts, image volumes, their order and propagation
    linux       namespaces, devices, masked paths
    resources   CRI limits to cgroup limits; merging an update
    sysctls     which sysctls a pod may set; the defaults
    edits       what CDI devices and hooks of the node change in a finished document
    annotations what the runtime is told about pod and container
    paths       the one path check

Rules throughout: what came from the client and cannot be done is an error that names it; what came
from an image is dropped or refused as each function says, never guessed; what is the node's own
default is narrowed to what the node has.
"""
