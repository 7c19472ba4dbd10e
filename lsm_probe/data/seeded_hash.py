"""Random draws that depend only on a seed and a sample's id: not on other samples, their order, or the process."""

import hashlib


def seeded_hash(seed: int, purpose: str, sample_id: str) -> int:
    """A number below 2^256 for a sample; another purpose or seed gives an unrelated number."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{purpose}\0{sample_id}".encode()).digest())
