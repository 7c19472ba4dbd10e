"""Cache of the frozen encoder's states on disk: each utterance is encoded once for all epochs and runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsm_probe.checksums import file_sha256
from lsm_probe.data.audio import read_audio
from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.training.samples import file_state

BATCH_SIZE = 8
"""Utterances encoded together."""


class SpeechStates:
    """Encoder states by utterance, in a folder whose name depends on everything else that affects them.

    A file holds one utterance's pieces (`0`, `1`, ...), `[states, encoder_dim]` each, without padding. They are
    computed and stored in `dtype`, bfloat16 under autocast.
    """

    def __init__(self, root: Path, checkpoint: Lsm, dtype: torch.dtype = torch.float32):
        lsm: Any = checkpoint.model
        config = lsm.config
        made_by = {
            "encoder": _weights_sha256(lsm.audio_tower),
            "encoder_context": config.encoder_context,
            "decoder_states": config.decoder_states,
            "dtype": str(dtype),
        }
        self.folder = root / hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]
        self.dtype = dtype

    def __contains__(self, sample: Sample) -> bool:
        return self._path(sample).exists()

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """One sample for each utterance that is not yet encoded."""
        return [sample for path, sample in {self._path(s): s for s in samples}.items() if not path.exists()]

    def fill(
        self,
        checkpoint: Lsm,
        samples: Sequence[Sample],
        problems: Problems,
        *,
        on_progress: Callable[[str, int, int | None], None],
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Encodes the speech of `samples`; unusable audio is recorded in `problems`."""
        batch: list[tuple[Sample, dict[str, Tensor]]] = []
        for done, sample in enumerate(samples, start=1):
            with problems.catching(""):
                batch.append((sample, checkpoint.processor.extract(read_audio(sample))))
            if len(batch) == batch_size or done == len(samples):
                self._encode(checkpoint, batch)
                batch = []
            on_progress("encoding speech", done, len(samples))

    def _encode(self, checkpoint: Lsm, batch: Sequence[tuple[Sample, dict[str, Tensor]]]) -> None:
        if not batch:
            return
        lsm: Any = checkpoint.model
        device = next(lsm.audio_tower.parameters()).device
        inputs = {name: torch.cat([features[name] for _, features in batch]).to(device) for name in batch[0][1]}
        with torch.no_grad(), torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            states, lengths = lsm.encode_speech(**inputs)
        made = states.to(self.dtype).cpu()  # one copy for the batch, because a copy waits for the device
        pieces = [piece[:length] for piece, length in zip(made, lengths.tolist(), strict=True)]
        for sample, features in batch:
            count = len(features["input_features"])
            own, pieces = pieces[:count], pieces[count:]
            with replacing(self._path(sample)) as temporary:
                save_file({str(i): piece.contiguous() for i, piece in enumerate(own)}, temporary)

    def read(self, sample: Sample) -> list[Tensor]:
        """The states of a sample's pieces, `[states, encoder_dim]` each.

        Raises:
            InputError: the file is damaged.
        """
        path = self._path(sample)
        try:
            pieces = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): delete it and continue with --resume") from error
        return [pieces[str(i)] for i in range(len(pieces))]

    def _path(self, sample: Sample) -> Path:
        assert sample.audio is not None
        audio = sample.audio
        sha256 = audio.sha256 if isinstance(audio, AudioBytes) else _file_sha256(audio, file_state(audio))
        content = f"{sha256} {sample.start} {sample.duration}"
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"


@cache
def _file_sha256(path: Path, _state: object) -> str:
    return file_sha256(path)


def _weights_sha256(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
