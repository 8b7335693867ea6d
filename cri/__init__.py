"""The daemon: everything that knows gRPC, protobuf and more than one engine.

    socket ─► server ─► rpc ─► convert_* ─► pod_lifecycle, container_lifecycle ─► the engines

`server` turns calls into bytes and failures into codes, `rpc` has one method for each CRI call,
`convert_*` alone translate between protobuf and the values of `sandbox.model`, the lifecycles put
the steps of the engines in order, `daemon` builds and wires all of it. `config` reads files and
flags into each engine's own settings; `cli` is the command. Nothing imports this package.
"""
