"""Released checkpoints of published speech LLMs, read without conversion.

There is one module per system; importing it here registers it. A system defines how to recognise its releases, which
LSM configuration of this package is equivalent, and what its tensors are called.
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
