"""Make the built-in probe set from `sentences.yaml`: 16 kHz FLAC files and their manifest.

python analyses/probe_set/make.py            # write lsm_probe/data/builtin_probe
python analyses/probe_set/make.py --check    # compare the existing files with those that would be written
"""

import argparse
import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import yaml

from lsm_probe.assets import speak
from lsm_probe.data.pools import read_pool

RATE = 16_000  # Hz, Whisper's sampling rate
SEED = 0
DATA = Path(str(files("lsm_probe.data")))
TARGET = DATA / "builtin_probe"


def rows() -> list[dict[str, Any]]:
    """The manifest's rows, the probing instructions given to the sentences in turn."""
    sentences = yaml.safe_load(Path(__file__).with_name("sentences.yaml").read_text(encoding="utf-8"))
    probing = read_pool("probing").tasks
    made = []
    for number, sentence in enumerate(sentences):
        turn = probing[number % len(probing)]
        if sentence["task"] != turn.task:
            raise SystemExit(f"sentence {number}: task {sentence['task']} where it is the turn of {turn.task}")
        name = f"probe-{number:02d}"
        made.append({"id": name, "audio": f"{name}.flac", "text": sentence["text"]})
        made[-1] |= {
            "task": turn.task,
            "instruction": turn.instructions[0],
            "language": "en",
            "target": sentence["target"],
        }
    return made


def spoken(text: str) -> np.ndarray:
    """The sentence as int16 samples [n] at 16 kHz, at the voice's own level."""
    samples, rate = speak(text, seed=SEED)
    resampled = soxr.resample(samples, rate, RATE, quality="VHQ")
    return np.clip(np.rint(resampled * 32767), -32768, 32767).astype(np.int16)


def write(folder: Path) -> None:
    """Writes the FLAC files and `manifest.jsonl` into `folder`."""
    made = rows()
    for row in made:
        soundfile.write(folder / row["audio"], spoken(row["text"]), RATE, subtype="PCM_16")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    (folder / "manifest.jsonl").write_text(lines, encoding="utf-8")


def differing(one: Path, other: Path) -> list[str]:
    """Names of the files that are not the same bytes in both folders."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}
    return sorted(name for name in names if _bytes(one / name) != _bytes(other / name))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    if not parser.parse_args().check:
        write(TARGET)
        return
    with tempfile.TemporaryDirectory() as again:
        write(Path(again))
        changed = differing(TARGET, Path(again))
    print("\n".join(changed) if changed else "the built-in probe set is what make.py makes")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
