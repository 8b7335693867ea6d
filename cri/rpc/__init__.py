"""The CRI calls. Every one has the same shape: validate, convert, call, convert.

No decisions here: what a call does is in the lifecycles and the image service, which this folder
knows as the protocols of `ports`; how a call gets here and its answer back (bytes, codes, logs,
limits) is in `cri.server`; `service` joins the two by the descriptors of the wire contract.
"""
