"""Does copying without speech lower eta? Prints the differences of eta in layers 25 to 29 from the text LLM.

    python analyses/speech_anchor_bias/text_control_eta.py RESULTS

RESULTS is the folder that `lsm-probe diagnose` wrote about the text LLM, the copying text LLM (text_control.py) and
`builtin:vanilla_asr`, or the unpacked text_control.tar.xz.
"""

import sys
from pathlib import Path

from lsm_probe.probes.attention.reference import mean_of_last_group
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.result import Curve, curve


def difference(result: AttentionResult, base: AttentionResult) -> Curve:
    """Of eta in the last group of layers, paired by utterance."""
    mean = mean_of_last_group(result.eta().mean) - mean_of_last_group(base.eta().mean)
    return curve(mean, mean_of_last_group(result.left_out_eta()) - mean_of_last_group(base.left_out_eta()))


def main(folder: Path) -> None:
    copies, vanilla, llm, at_length = (
        AttentionResult.load(folder / "attention" / name)
        for name in ("copy-llm", "builtin-vanilla_asr", "builtin-llm", "builtin-llm-at-length-of-builtin-vanilla_asr")
    )
    rows = {
        "copying text LLM minus text LLM": (copies, llm),
        "vanilla minus text LLM": (vanilla, llm),
        "vanilla minus text LLM at the speech's length": (vanilla, at_length),
    }
    for name, pair in rows.items():
        found = difference(*pair)
        print(f"{name}: {float(found.mean):.2f} [{float(found.ci_low):.2f}, {float(found.ci_high):.2f}]")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
