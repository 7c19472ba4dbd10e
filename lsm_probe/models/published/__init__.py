"""Released checkpoints of published speech LLMs, read as they are.

One module a system; importing it here registers it. A system says how to recognise its releases, which configuration
of an LSM of this package computes the same, and how its tensors are called there.
"""

from lsm_probe.models.published import blsp, diva, llama_omni, llasm, salmonn, self_powered, slam_llm, ultravox
from lsm_probe.models.published.loading import (
    cached_config,
    download_release,
    find_release,
    find_system,
    load_published,
    missing_parts,
    read_published,
)
from lsm_probe.models.published.system import PARTS, SYSTEMS, Parts

__all__ = [
    "PARTS",
    "SYSTEMS",
    "Parts",
    "blsp",
    "cached_config",
    "diva",
    "download_release",
    "find_release",
    "find_system",
    "llama_omni",
    "llasm",
    "load_published",
    "missing_parts",
    "read_published",
    "salmonn",
    "self_powered",
    "slam_llm",
    "ultravox",
]
