"""The CRI wire contract: `api.proto`, and what hack/gen_protos makes of it.

Only `cri.rpc` and the `cri.convert_*` modules import from here; everyone else works on plain
values and need not know that there is a wire.
"""
