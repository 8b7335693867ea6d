"""Why a signature does not count, or a policy's own material cannot be used."""

from __future__ import annotations


class Refused(Exception):
    """One signature is not good for one demand; others may be."""


class MaterialInvalid(Exception):
    """Keys or certificates of the policy itself cannot be used: nothing can be judged by them."""
