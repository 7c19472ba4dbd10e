"""The speech recogniser of a cascade: a Whisper of any size, whose transcript the LLM reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from langcodes import closest_supported_match
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor

from lsm_probe import assets
from lsm_probe.assets.notice import quiet_log
from lsm_probe.errors import InputError
from lsm_probe.hardware import exact_float32
from lsm_probe.languages import find_language
from lsm_probe.memory import fitting
from lsm_probe.models.checkpoint_names import require_folder
from lsm_probe.models.devices import resolve_device, resolve_dtype
from lsm_probe.models.identification import check_folder, identify
from lsm_probe.models.identity import WeightsIdentity
from lsm_probe.models.pretrained import pretrained, pretrained_model
from lsm_probe.models.speech_times import RATE
from lsm_probe.waveform import as_waveform

BUILTIN = "builtin:whisper"
_SAME_LANGUAGE = 1
"""Distance in CLDR's table of two codes for the same language, such as `nb` and `no`; others are further apart."""


@dataclass(frozen=True)
class Transcriber:
    """A loaded Whisper.

    Attributes:
        name: the user's name for it.
        model: a `WhisperForConditionalGeneration`.
        processor: its `WhisperProcessor`.
        identity: origin of the weights and their hashes; stored with every result.
    """

    name: str
    model: Any
    processor: Any
    identity: WeightsIdentity

    @torch.no_grad()
    @exact_float32()
    def transcribe(self, waveforms: Sequence[NDArray[np.float32]], languages: Sequence[str | None]) -> list[str]:
        """Transcribes a batch greedily; in float32 each clip gives the same text as alone.

        Speech longer than 30 s uses Whisper's long-form decoding (Radford et al. 2022, section 3.8) in transformers:
        windows of 30 s, each of which begins at the end of the last one's timestamps, so that no word is cut. Beam
        search, the fallback to higher temperatures and conditioning on previous text are not used.

        Args:
            waveforms: mono at 16 kHz, `[samples]` each, as [`as_waveform`] takes them, of any length.
            languages: of each, in any spelling that [`lsm_probe.languages.find_language`] knows. For None, a
                multilingual Whisper detects the language in the first 30 s, unless its checkpoint is set to one.

        Returns:
            A text for each, without timestamps.

        Raises:
            InputError: the model does not know a language; also for the reasons that [`as_waveform`] gives.
        """
        codes = [self._code(language) for language in languages]
        features = [self._features(as_waveform(waveform)) for waveform in waveforms]
        alike: dict[tuple[bool, str | None], list[int]] = {}
        for row, code in enumerate(codes):
            alike.setdefault((features[row].shape[1] > self._window, code), []).append(row)
        texts = [""] * len(features)
        for (_, code), rows in alike.items():
            for row, text in zip(rows, self._generate([features[row] for row in rows], code), strict=True):
                texts[row] = text
        return texts

    @property
    def _window(self) -> int:
        """Mel frames of 30 s."""
        return int(self.processor.feature_extractor.nb_max_frames)

    def _code(self, language: str | None) -> str | None:
        """The language argument for `generate`; None to omit it."""
        found = find_language(language)
        if found is None:
            return None
        settings = self.model.generation_config
        if not settings.is_multilingual:
            if found.code != "en":
                raise InputError(f"{self.name} transcribes only English, not {language!r}: give a multilingual Whisper")
            return None
        # Some of Whisper's codes are outdated or broad: "jw" for "jv", "no" also for "nb".
        codes = [token.strip("<|>") for token in settings.lang_to_id]
        code = closest_supported_match(found.code, codes, max_distance=_SAME_LANGUAGE)
        if code is None:
            raise InputError(f"{self.name} does not know the language {language!r}: give a Whisper that does")
        return code

    def _features(self, waveform: NDArray[np.float32]) -> Tensor:
        """Log-mel features, `[mel_bins, frames]`, padded to 30 s where shorter.

        Computed for each clip alone, because in a batch its last frame would depend on the padding.
        """
        extract = self.processor.feature_extractor
        is_long = len(waveform) // extract.hop_length > self._window
        options = {"truncation": False, "padding": "longest"} if is_long else {}
        features: Tensor = extract(waveform, sampling_rate=RATE, return_tensors="pt", **options).input_features[0]
        return features

    def _generate(self, features: list[Tensor], code: str | None) -> list[str]:
        """Transcripts of clips of one language, either all longer than 30 s or all shorter."""
        lengths = torch.tensor([feature.shape[1] for feature in features])
        longest = int(lengths.max())
        inputs = torch.stack([pad(feature, (0, longest - feature.shape[1])) for feature in features])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        multilingual = {"task": "transcribe", "language": code} if self.model.generation_config.is_multilingual else {}
        with quiet_log():  # hides transformers' warnings about its own internal arguments
            ids = self.model.generate(
                inputs.to(self.model.device, self.model.dtype),
                attention_mask=mask.to(self.model.device),
                return_timestamps=longest > self._window,
                condition_on_prev_tokens=False,
                num_beams=1,
                **multilingual,
            )
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


def load_transcriber(name: str, *, device: str = "auto", dtype: str = "auto") -> Transcriber:
    """Loads a speech recogniser.

    Args:
        name: folder or hub name of a Whisper of any size, or `builtin:whisper` (the embedded tiny.en).
        device: as in [`lsm_probe.load`].
        dtype: as in [`lsm_probe.load`].

    Raises:
        InputError: the model does not exist, its checksums do not match, it is not a Whisper, or it has no information
            on how to prompt it.
    """
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    check_transcriber(name)
    folder = str(assets.speech_encoder()) if name == BUILTIN else name
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    if config.model_type != "whisper":
        raise InputError(f"{name} is a {config.model_type!r} model: give a Whisper model of any size")
    processor = pretrained(WhisperProcessor, folder)
    model: Any = pretrained_model(WhisperForConditionalGeneration, folder, torch_dtype)
    settings = model.generation_config
    needed = ["no_timestamps_token_id", "is_multilingual"]
    needed += ["lang_to_id", "task_to_id"] if getattr(settings, "is_multilingual", False) else []
    if missing := [key for key in needed if not hasattr(settings, key)]:
        raise InputError(
            f"{name} lacks {', '.join(missing)} in its generation_config.json: take that file from OpenAI's Whisper of "
            "the same size"
        )
    # Old settings that duplicate arguments of `generate`, and settings that would make it retry.
    model.config.forced_decoder_ids = None
    thresholds = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
    settings.update(forced_decoder_ids=None, **dict.fromkeys(thresholds))
    with fitting(name, torch_device, "--dtype bfloat16, or a smaller Whisper"):
        model.to(torch_device)
    return Transcriber(name, model.eval(), processor, identify(folder, config, checksums))


def check_transcriber(name: str) -> None:
    """Refuses, without loading anything, names that no recogniser can have.

    Raises:
        InputError: there is no such built-in, or no such folder.
    """
    if name.startswith("builtin:") and name != BUILTIN:
        raise InputError(f"{name} is not a speech recogniser; the built-in one is {BUILTIN}")
    require_folder(name)
