"""Randomness that depends on what is drawn, never on who draws it or when."""

import hashlib

import numpy as np


def _key(seed: int, identity_id: str, index: int, stream: str) -> bytes:
    text = f"{seed}\x1f{stream}\x1f{identity_id}\x1f{index}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def generator(seed: int, identity_id: str, index: int = 0, stream: str = "") -> np.random.Generator:
    """A counter-based generator for one image of one identity.

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the SHA-256
    of the arguments: two generators are independent as soon as one argument differs, and the same
    arguments give the same numbers on any worker, in any order, after any crash.

    Args:
        seed: seed of the run.
        identity_id: identity the numbers are drawn for.
        index: image within the identity.
        stream: what the numbers are for ("augment", "flip", ...), so that uses do not collide.
    """
    key = np.frombuffer(_key(seed, identity_id, index, stream)[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


def torch_seed(seed: int, identity_id: str, index: int = 0, stream: str = "") -> int:
    """A 63-bit seed for `torch.Generator.manual_seed`, drawn like `generator`."""
    return int.from_bytes(_key(seed, identity_id, index, stream)[16:24], "little") >> 1
