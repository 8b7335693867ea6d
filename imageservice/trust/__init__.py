"""Trust: which images this node may have and run, by the operator's policy file.

    gate ── what `service` asks: may this name be asked for, may this image be kept, may it be run
      ├─ policy_files ── containers-policy.json(5), for the node and for each namespace
      │    └─ policy, identity, scopes ── the file's grammar as values, read strictly
      ├─ attachments ── signatures as cosign keeps them in a registry
      ├─ kept ── the same on this node, so that a container's start asks no registry
      └─ judges, worker ── a process that judges: judge, payload, keys, certificates, rekor

Rules kept everywhere here:

- What cannot be decided is refused: a policy that cannot be read, a key that is missing, a registry
  that does not answer for the signatures.
- Signatures are of a digest, the digest is checked against bytes before anyone is asked for it.
- Keys, certificates and signatures are parsed in a process of its own without files, network or
  state: its library weighs 13 MiB in a daemon that aims at 55, and strangers wrote its input.
- A verdict is a function of policy, keys, names, digests and signatures, and is kept under them.
"""
