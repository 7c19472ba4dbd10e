"""Released checkpoints of published speech LLMs, read as they are.

One module a system; importing it here registers it. A system says how to recognise its releases, which configuration
of an LSM of ours computes the same, and how its tensors are called there.
"""

from lsm_probe.models.published import blsp, diva, llama_omni, llasm, salmonn, self_powered, slam_llm, ultravox
from lsm_probe.models.published.loading import (
    check_parts,
    download_release,
    find_system,
    load_published,
    read_published,
    used_parts,
)
from lsm_probe.models.published.system import PARTS, SYSTEMS, Parts

__all__ = [
    "PARTS",
    "SYSTEMS",
    "Parts",
    "blsp",
    "check_parts",
    "diva",
    "download_release",
    "find_system",
    "llama_omni",
    "llasm",
    "load_published",
    "read_published",
    "salmonn",
    "self_powered",
    "slam_llm",
    "ultravox",
    "used_parts",
]
