"""The processor: from instruction text and waveforms to model inputs, with the segment of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AddedToken, BatchFeature, ProcessorMixin

from lsm_probe.errors import InputError
from lsm_probe.models.beats.features import beats_features, num_beats_frames
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig, num_speech_tokens
from lsm_probe.models.prompts import Prompt, encode_prompt, example_prompt, refuse_placeholder
from lsm_probe.models.saved_tokenizer import keep_tokenizer
from lsm_probe.models.segments import Segment
from lsm_probe.models.speech_encoder import num_states
from lsm_probe.models.speech_times import RATE
from lsm_probe.models.templates import (
    AUDIO_TOKEN,
    FILE,
    TEMPLATES,
    PromptTemplate,
    carried_template,
    default_template,
    find_template,
)
from lsm_probe.waveform import as_waveform


class LsmProcessor(ProcessorMixin):
    """A Whisper feature extractor and an LLM's tokenizer with a prompt template between them.

    Args:
        feature_extractor: a `WhisperFeatureExtractor`.
        tokenizer: the LLM's fast tokenizer. The placeholder `<|audio|>` is added to it as a special token.
        audio_token_id: id of that placeholder in `input_ids` (the model's id, not the tokenizer's).
        projector: the connector's configuration as a dictionary: it determines the number of speech tokens.
        template: prompt template, its name, or its YAML file; the tokenizer's own chat template where it has one.
        decoder_states: the model's, which also decides how many speech tokens there are.
        encoder_context: the model's, see [`LsmConfig`].
        with_beats: whether BEATs is part of the model's audio tower, so that it needs features of its own.

    Attributes:
        template: the prompt template, which the processor's folder carries as `prompt_template.yaml`.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        audio_token_id: int = 0,
        projector: dict[str, Any] | None = None,
        template: str | PromptTemplate | None = None,
        chat_template: str | None = None,
        decoder_states: int | None = None,
        encoder_context: str = "full",
        with_beats: bool = False,
    ):
        tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, special=True, normalized=False)], special_tokens=True)
        self.audio_token_id = audio_token_id
        self.projector = projector or {}
        self.template = find_template(template or default_template(tokenizer))
        self.decoder_states = decoder_states
        self.encoder_context = encoder_context
        self.with_beats = with_beats
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @classmethod
    def for_model(
        cls, config: LsmConfig, feature_extractor: Any, tokenizer: Any, template: str | PromptTemplate | None = None
    ) -> LsmProcessor:
        """The processor that fits a model of this configuration.

        Raises:
            InputError: the feature extractor is that of another encoder.
        """
        check_feature_extractor(feature_extractor, config)
        projector = config.projector_config.to_diff_dict()
        for name in ("transformers_version", "model_type"):
            projector.pop(name, None)
        tower: dict[str, Any] = {
            "decoder_states": config.decoder_states,
            "encoder_context": config.encoder_context,
            "with_beats": config.beats_config is not None,
        }
        return cls(feature_extractor, tokenizer, config.audio_token_id, projector, template, **tower)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> LsmProcessor:  # type: ignore[override]
        """Reads a folder or hub name, with the prompt template that it carries."""
        processor: LsmProcessor = super().from_pretrained(name, **kwargs)
        processor.template = carried_template(name) or processor.template
        return processor

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Writes the files of the processor, and its prompt template as `prompt_template.yaml`.

        Raises:
            ValueError: `push_to_hub` is set, because the upload would begin before all files are written.
        """
        if push_to_hub:
            raise ValueError("save to a folder first, then upload it with huggingface_hub.upload_folder")
        written = super().save_pretrained(save_directory, **kwargs)
        keep_tokenizer(save_directory)
        if self.template.content:  # one from another package may be a function
            (Path(save_directory) / FILE).write_text(self.template.content, encoding="utf-8")
        return written

    def to_dict(self) -> dict[str, Any]:
        name = self.template.name
        return super().to_dict() | {"template": name if name in TEMPLATES else None}

    def encode(self, instruction: str, audio: NDArray[np.float32]) -> Prompt:
        """Encodes one instruction about one utterance.

        Args:
            instruction: what the model is told to do.
            audio: mono waveform at the feature extractor's rate (16 kHz), `[samples]`, as [`as_waveform`] takes it.
                More than 30 s becomes several pieces, each encoded by itself; nothing is cut off.

        Raises:
            InputError: as [`as_waveform`]; or the instruction holds a control token or the audio placeholder, or has no
                tokens.
        """
        features = self.extract(audio)
        prompt = self._encode_speech(instruction, self.count_speech_tokens(len(audio)))
        return replace(prompt, features=features)

    def encode_with_speech(self, instruction: str, speech: Tensor) -> Prompt:
        """Encodes another instruction about an utterance with known speech tokens, `[speech tokens, llm_dim]`."""
        return replace(self._encode_speech(instruction, len(speech)), speech=speech)

    def encode_text(self, instruction: str, transcript: str) -> Prompt:
        """Encodes one instruction about a transcript, which takes the place of the speech.

        Raises:
            InputError: the transcript holds the audio placeholder; or it or the instruction holds a control token or
                tokenises to nothing.
        """
        refuse_placeholder("transcript", transcript, AUDIO_TOKEN)
        return encode_prompt(self.tokenizer, self.template, instruction, transcript)

    def example(self) -> Sequence[tuple[int, object]]:
        """A prompt with fixed words in the place of the instruction, cut into segments; identifies the template."""
        return example_prompt(self.tokenizer, self.template, AUDIO_TOKEN)

    def _encode_speech(self, instruction: str, speech_tokens: int) -> Prompt:
        options = {"source_length": speech_tokens, "audio_token_id": self.audio_token_id}
        return encode_prompt(self.tokenizer, self.template, instruction, AUDIO_TOKEN, **options)

    def __call__(
        self,
        instruction: str | list[str] | None = None,
        audio: NDArray[np.float32] | list[NDArray[np.float32]] | None = None,
        *,
        sampling_rate: int | None = None,
        padding_side: Literal["left", "right"] = "left",
        return_segments: bool = False,
    ) -> BatchFeature:
        """Encodes a batch for `model(**inputs)` and `model.generate(**inputs)`.

        Args:
            instruction: what the model is told to do, one for each waveform.
            audio: mono waveforms `[samples]` as [`as_waveform`] takes them, at the feature extractor's rate (16 kHz).
            sampling_rate: of the waveforms, Hz; checked, never converted. None trusts the caller.
            padding_side: where shorter prompts are padded.
            return_segments: add the segment of each token.

        Returns:
            `input_ids` and `attention_mask` `[batch, tokens]`, `input_features` `[pieces, mel_bins, 3000]`,
            `input_features_mask` `[pieces, 3000]`; of a model with BEATs `beats_features` and `beats_frames`, see
            [`extract`]; and `segments` `[batch, tokens]` if asked for.

        Raises:
            InputError: the sampling rate is another, or as [`LsmProcessor.encode`].
        """
        needed = self.feature_extractor.sampling_rate
        if sampling_rate is not None and sampling_rate != needed:
            raise InputError(
                f"the speech is sampled at {sampling_rate} Hz, and the model reads {needed} Hz: convert it with "
                f"soxr.resample(audio, {sampling_rate}, {needed})"
            )
        instructions = [instruction] if isinstance(instruction, str) else instruction
        audios = audio if isinstance(audio, list) else [] if audio is None else [audio]
        if audios and isinstance(audios[0], int | float):
            raise InputError("the speech is a list of numbers: give an array, or a list of arrays")
        if not instructions or not audios or len(instructions) != len(audios):
            raise ValueError("give as many instructions as waveforms, and at least one")
        prompts = [self.encode(i, a) for i, a in zip(instructions, audios, strict=True)]
        pad_id = self.tokenizer.pad_token_id or 0
        inputs = {
            "input_ids": pad([p.input_ids for p in prompts], pad_id, padding_side),
            "attention_mask": pad([[1] * len(p) for p in prompts], 0, padding_side),
            **{name: torch.cat([p.features[name] for p in prompts]) for name in prompts[0].features},
        }
        if return_segments:
            inputs["segments"] = pad([[int(s) for s in p.segments] for p in prompts], Segment.PADDING, padding_side)
        return BatchFeature(inputs)

    def extract(self, audio: NDArray[np.float32]) -> dict[str, Tensor]:
        """The speech as the model's inputs, in pieces of 30 s.

        Returns:
            `input_features`, log-mel features, `[pieces, mel_bins, 3000]`, and `input_features_mask`,
            `[pieces, 3000]`, 1 where a mel frame is speech. Of a model with BEATs also `beats_features`, padded,
            `[pieces, 2998, 128]`, and `beats_frames`, `[pieces]`, how many frames each has.

        Raises:
            InputError: as [`as_waveform`].
        """
        audio = as_waveform(audio)
        extractor = self.feature_extractor
        pieces = [audio[i : i + extractor.n_samples] for i in range(0, len(audio), extractor.n_samples)]
        if self.encoder_context == "clip":
            features = torch.cat([self._mel_of_clip(piece) for piece in pieces])
        else:
            options = {"sampling_rate": extractor.sampling_rate, "padding": "max_length", "return_tensors": "pt"}
            features = extractor(pieces, **options).input_features
        mel_frames = self._mel_frames(len(audio))
        mask = (torch.arange(features.shape[-1]) < mel_frames[:, None]).long()
        mel = {"input_features": features, "input_features_mask": mask}
        return mel | self._extract_beats(pieces) if self.with_beats else mel

    def _extract_beats(self, pieces: list[NDArray[np.float32]]) -> dict[str, Tensor]:
        """BEATs' input for each piece; a piece of less than 1 s is padded with silence, as in SALMONN."""
        rate, longest = self.feature_extractor.sampling_rate, self.feature_extractor.n_samples
        found = [beats_features(np.pad(piece, (0, max(0, rate - len(piece))))) for piece in pieces]
        padded = torch.zeros(len(found), num_beats_frames(longest), found[0].shape[1])
        for row, features in zip(padded, found, strict=True):
            row[: len(features)] = features
        return {"beats_features": padded, "beats_frames": torch.tensor([len(features) for features in found])}

    def _mel_of_clip(self, piece: NDArray[np.float32]) -> Tensor:
        """Log-mel features of a piece padded only to whole frames, `[1, mel_bins, 3000]`."""
        extractor = self.feature_extractor
        frames = -(-len(piece) // extractor.hop_length)
        # The Fourier transform mirrors half a window at each end, and needs more samples than that.
        needed = max(frames * extractor.hop_length, extractor.n_fft // 2 + 1)
        filled = np.pad(piece, (0, needed - len(piece)))
        options = {"sampling_rate": extractor.sampling_rate, "padding": False, "return_tensors": "pt"}
        features = extractor(filled, **options).input_features[..., :frames]
        return torch.nn.functional.pad(features, (0, extractor.nb_max_frames - features.shape[-1]))

    def count_speech_tokens(self, num_samples: int) -> int:
        """Speech tokens that an utterance of `num_samples` (at 16 kHz) becomes."""
        config = LsmProjectorConfig(**self.projector)
        lengths = num_states(self._mel_frames(num_samples), self.decoder_states)
        return sum(num_speech_tokens(config, length) for length in lengths.tolist())

    def _mel_frames(self, num_samples: int) -> Tensor:
        """Mel frames (10 ms) that are speech, or count as it, of each 30 s piece."""
        extractor = self.feature_extractor
        if self.encoder_context == "padded":
            return torch.full((-(-num_samples // extractor.n_samples),), extractor.nb_max_frames)
        pieces = [min(extractor.n_samples, num_samples - i) for i in range(0, num_samples, extractor.n_samples)]
        # Counted here: the extractor's own mask is a frame off unless the length divides by the hop.
        return torch.tensor([-(-piece // extractor.hop_length) for piece in pieces])


def check_feature_extractor(extractor: Any, config: LsmConfig) -> None:
    """Raises InputError if the number of mel bins, the frames of a piece or the sampling rate are not the encoder's."""
    audio: Any = config.audio_config
    frames = 2 * audio.max_source_positions
    needed = {"feature_size": audio.num_mel_bins, "nb_max_frames": frames, "sampling_rate": RATE}
    for setting, needs in needed.items():
        if (has := getattr(extractor, setting)) != needs:
            raise InputError(
                f"the feature extractor has {setting} {has}, and the encoder needs {needs}: take the "
                "preprocessor_config.json of the encoder"
            )


def pad(rows: list[list[int]], value: int, side: Literal["left", "right"]) -> Tensor:
    """Pads lists of integers to `[rows, longest]`."""
    longest = max(len(row) for row in rows)
    filler = [[value] * (longest - len(row)) for row in rows]
    padded = [f + row if side == "left" else row + f for row, f in zip(rows, filler, strict=True)]
    return torch.tensor(padded, dtype=torch.long)
