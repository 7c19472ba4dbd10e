"""What the speech tokens of an LSM spell by themselves, without the LLM: after stage `align`, a transcript.

    python analyses/open_speech/spell.py runs/open/align/model clips.jsonl open/manifest.jsonl

Each speech token becomes the token with the nearest embedding, or nothing where the origin is nearer. Repeated tokens
count once. Only tokens are considered that the transcripts of training have (the last manifest). Prints the word error
rate against the transcripts of the clips (Whisper's English normalizer, jiwer).
"""

from __future__ import annotations

import sys
from typing import Any

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper_normalizer.english import EnglishTextNormalizer

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.training.alignment import spelling


@torch.inference_mode()
def spell(checkpoint: Any, tokens: Tensor, waveform: NDArray[np.float32]) -> str:
    """The transcript that the speech tokens of one utterance spell."""
    lsm = checkpoint.model
    speech = lsm.get_audio_features(**checkpoint.processor.extract(waveform))
    embeddings = lsm.get_input_embeddings().weight[tokens]
    scores = 2 * speech @ embeddings.T - embeddings.pow(2).sum(1)  # |z|^2 - |z - e|^2; 0 is the origin's
    best = scores.max(1)
    nearest = best.indices.masked_fill(best.values < 0, -1).unique_consecutive()
    return str(checkpoint.tokenizer.decode(tokens[nearest[nearest >= 0]]))


def main(ckpt: str, manifest: str, trained_on: str) -> None:
    checkpoint = lsm_probe.load(ckpt, device="cpu", dtype="float32")
    samples = lsm_probe.read_manifest(manifest)
    spelled_in_training = [spelling(checkpoint.tokenizer, s.text or "") for s in lsm_probe.read_manifest(trained_on)]
    tokens = torch.tensor(sorted({token for ids in spelled_in_training for token in ids}))
    spelled = [spell(checkpoint, tokens, read_audio(sample)) for sample in samples]
    normalize = EnglishTextNormalizer()
    said = [normalize(sample.text or "") for sample in samples]
    for sample, text in list(zip(samples, spelled, strict=True))[:5]:
        print(f"{sample.text}\n    {text}")
    print(f"word error rate {100 * jiwer.wer(said, list(map(normalize, spelled))):.1f} % on {len(samples)} utterances")


if __name__ == "__main__":
    main(*sys.argv[1:4])
