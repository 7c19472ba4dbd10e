"""Measure word error rates of Whisper tiny.en on recordings with transcripts, such as those of `lsm-probe data speak`.

python analyses/spoken_text/word_error_rates.py spoken/manifest.jsonl commands/test.transcription.jsonl --limit 300

For each manifest the corpus word error rate (all errors over all words, jiwer) after Whisper's English normaliser on
both sides, in total and by voice and speed, on `--limit` evenly spaced utterances. It prints the worst sentences.
Writes them into word_error_rates.json beside this file; results of other manifests stay there.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
import torch
import yaml
from rich.progress import track
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging as transformers_logging
from whisper_normalizer.english import EnglishTextNormalizer

from lsm_probe.assets import speech_encoder
from lsm_probe.data.audio import read_audio
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.sample import Sample
from lsm_probe.data.speech import SpeechSettings
from lsm_probe.files import replacing

HERE = Path(__file__).parent
Pair = tuple[str, str]  # reference, transcript


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--worst", type=int, default=5, help="sentences to print")
    return parser.parse_args()


def transcribe(samples: list[Sample], batch_size: int) -> list[str]:
    """Greedy transcripts."""
    folder = speech_encoder()
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor: Any = WhisperProcessor.from_pretrained(folder)
    transcripts: list[str] = []
    for start in track(range(0, len(samples), batch_size), description="transcribing"):
        clips = [read_audio(sample) for sample in samples[start : start + batch_size]]
        features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
        transcripts += processor.batch_decode(model.generate(features), skip_special_tokens=True)
    return transcripts


def error_rate(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Corpus word error rate of normalised pairs."""
    references, transcripts = map(list, zip(*pairs, strict=True))
    counts = jiwer.process_words(references, transcripts)
    words = counts.hits + counts.substitutions + counts.deletions
    return {
        "utterances": len(references),
        "words": words,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "wer": round(counts.wer, 4),
    }


def delivered(manifest: Path) -> SpeechSettings | None:
    """How the folder's texts were spoken, from its config.yaml."""
    path = manifest.parent / "config.yaml"
    if not path.exists():
        return None
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return SpeechSettings(tuple(config["voices"]), tuple(config["speeds"]), config["seed"])


def measure(manifest: Path, limit: int, batch_size: int, worst: int) -> dict[str, Any]:
    samples = read_manifest(manifest)
    samples = samples[:: max(1, len(samples) // limit)][:limit]
    normalise, settings = EnglishTextNormalizer(), delivered(manifest)
    pairs: dict[str, Pair] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for sample, text in zip(samples, transcribe(samples, batch_size), strict=True):
        assert sample.text is not None
        pairs[sample.id] = (normalise(_unbracketed(sample.text)), normalise(_unbracketed(text)))
        if settings is not None:
            voice, speed, _ = settings.choose(sample.id)
            groups[voice].append(sample.id)
            groups[f"speed {speed}"].append(sample.id)
    by_errors = sorted(pairs, key=lambda i: -jiwer.process_words(*pairs[i]).wer)
    for name in by_errors[:worst]:
        print(f"{name}\n  reference   {pairs[name][0]}\n  transcript  {pairs[name][1]}")
    parts = {name: error_rate(pairs[i] for i in ids) for name, ids in sorted(groups.items())}
    about = {"date": date.today().isoformat(), "of": len(read_manifest(manifest))}
    return {**about, "all": error_rate(pairs.values()), **parts}


def _unbracketed(text: str) -> str:
    """The text without bracket characters; Whisper's normaliser would delete the words inside them."""
    return text.translate(str.maketrans("()[]", "    "))


def main() -> None:
    transformers_logging.set_verbosity_error()
    options = arguments()
    found = {
        f"{path.parent.name}/{path.name}": measure(path, options.limit, options.batch_size, options.worst)
        for path in options.manifests
    }
    packages = ("transformers", "torch", "jiwer", "whisper-normalizer", "hibari-tts")
    path = HERE / "word_error_rates.json"
    before = json.loads(path.read_text(encoding="utf-8"))["manifests"] if path.exists() else {}
    report = {
        "transcriber": "Whisper tiny.en, greedy",
        "versions": {name: version(name) for name in packages},
        "manifests": before | found,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, parts in found.items():
        for part, counts in parts.items():
            if isinstance(counts, dict):
                print(f"{name}  {part}: {100 * counts['wer']:.2f} % of {counts['words']} words")


if __name__ == "__main__":
    main()
