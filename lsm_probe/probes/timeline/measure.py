"""The timeline of one utterance: how much each layer attends to each moment of the speech, for each response token.

The attention probe gives eta and the response. One more pass over that response keeps a(m, j) for every generating row
m and speech token j. The connector determines the time that each speech token covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsm_probe.data.audio import read_audio
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.hardware import exact_float32
from lsm_probe.instruments.capture import LayerAttention, capture
from lsm_probe.instruments.norms import row_norms
from lsm_probe.languages import find_language
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.connectors import WindowQFormer
from lsm_probe.models.segments import Segment
from lsm_probe.models.speech_times import PIECE_SECONDS, RATE, Times, even_times, frame_times
from lsm_probe.probes.attention.measure import attention, generating_rows
from lsm_probe.probes.attention.speech import ConnectorAttention, speech_attention
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.probes.timeline.word_times import word_times
from lsm_probe.probes.timeline.words import Word
from lsm_probe.runner.options import MAX_NEW_TOKENS, ResponseOptions
from lsm_probe.runner.prepared_samples import prepare, teacher_forced_inputs


@exact_float32()
def timeline(
    checkpoint: Checkpoint,
    sample: Sample,
    *,
    response: Literal["generated", "reference"] = "generated",
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Timeline:
    """Measure the response's attention to the speech over time.

    Memory holds layers x response tokens x speech tokens numbers, plus heads x response tokens x speech tokens numbers
    for one layer at a time.

    Args:
        checkpoint: an LSM, or another audio LLM. For the latter, speech tokens are assumed to be spread evenly over its
            input: the utterance, or the utterance padded with silence up to 30 s.
        sample: with `audio`; if it also has `text` (English, at most 30 s of speech), the timeline shows its words.
        response: `generated` decodes greedily; `reference` takes the sample's target.
        max_new_tokens: longest generated response.

    Raises:
        InputError: the checkpoint is a text LLM, its speech tokens have no time, the sample cannot be used, the
            response is empty, or the model's attention cannot be measured exactly.
    """
    if checkpoint.source != "speech":
        raise InputError(f"{checkpoint.name} is a text LLM: give a model that takes speech")
    waveform = read_audio(sample)
    times = checkpoint.speech_token_times(len(waveform))  # raises before the model runs
    ours = times is not None
    result = attention(checkpoint, [sample], response=response, max_new_tokens=max_new_tokens)
    ids = result.responses()[sample.id]
    norms = _norms_by_row(checkpoint, sample, ids)
    if times is None:
        times = even_times(norms.shape[2], _covered_samples(checkpoint, sample, waveform, norms.shape[2]))
    end = len(waveform) / RATE
    spoken = times[:, 0] < end  # some models also make tokens of the silence after the speech
    times, norms = np.minimum(times[spoken], end), norms[..., spoken]
    frames = frame_times(len(waveform))
    shares, check = spread_evenly(times, frames), {"llm": result.self_check}
    if ours and isinstance(checkpoint.connector, WindowQFormer):
        speech = speech_attention(checkpoint, waveform)
        assert speech.connector is not None
        shares, check = _own_shares(speech.connector, spoken, len(frames)), {**check, **speech.self_check}
    words, missing = _place_words(sample, waveform)
    return Timeline(
        sample={**result.samples[0], "text": sample.text},
        tokens=[str(checkpoint.tokenizer.decode([token])) for token in ids],
        checkpoint=result.checkpoint,
        data=result.data,
        conventions=result.conventions.to_dict(),
        versions=result.versions,
        eta=result.eta().mean,
        norms=norms,
        token_times=times,
        times_from="connector" if ours else "even",
        shares=shares,
        frame_times=frames,
        words=words,
        words_missing=missing,
        self_check=check,
        waveform=waveform,
    )


def choose_sample(samples: Sequence[Sample], name: str | None = None) -> Sample:
    """The sample of this id, or the first one.

    Raises:
        InputError: there is none.
    """
    found = [sample for sample in samples if name in (None, sample.id)]
    if not found:
        some = ", ".join(sample.id for sample in samples[:3])
        raise InputError(f"--sample {name} is not in the manifest; its ids are like {some}")
    return found[0]


def spread_evenly(token_times: Times, frames: Times) -> csr_array:
    """What part of each token lies in each frame, by time alone: `[tokens, frames]`, rows summing to 1."""
    first = np.searchsorted(frames[:, 1], token_times[:, 0], side="right")
    past = np.searchsorted(frames[:, 0], token_times[:, 1], side="left")
    rows = np.repeat(np.arange(len(token_times)), past - first)
    columns = np.concatenate([np.arange(*span) for span in zip(first, past, strict=True)])
    begin = np.maximum(token_times[rows, 0], frames[columns, 0])
    end = np.minimum(token_times[rows, 1], frames[columns, 1])
    seconds = token_times[rows, 1] - token_times[rows, 0]
    return csr_array(((end - begin) / seconds, (rows, columns)), shape=(len(token_times), len(frames)))


def _own_shares(connector: ConnectorAttention, spoken: NDArray[np.bool_], frames: int) -> csr_array:
    """What part of each spoken token its connector takes from each frame, `[tokens, frames]`, rows summing to 1.

    The last token may also come from the silence after the speech; that part is left out.
    """
    shares, first = connector.shares()[spoken], connector.first_frame[spoken]
    shares = shares * (first[:, None] + np.arange(shares.shape[1]) < frames)
    shares /= shares.sum(1, keepdims=True)
    rows, within = shares.nonzero()  # frames that the last window lacks have no share
    return csr_array((shares[rows, within], (rows, first[rows] + within)), shape=(len(shares), frames))


def _covered_samples(checkpoint: Checkpoint, sample: Sample, waveform: NDArray[np.float32], tokens: int) -> int:
    """Number of audio samples that another audio LLM's speech tokens cover; some models pad with silence to 30 s
    pieces."""
    whole = np.pad(waveform, (0, -len(waveform) % (PIECE_SECONDS * RATE)))
    same = checkpoint.encode(sample.instruction, whole).count(Segment.SOURCE) == tokens
    return len(whole) if same else len(waveform)


@torch.no_grad()
def _norms_by_row(checkpoint: Checkpoint, sample: Sample, response: list[int]) -> NDArray[np.float32]:
    """a(m, j) of each layer, generating row and speech token, `[layers, rows, speech tokens]`."""
    (item,), _ = prepare(checkpoint, [sample], ResponseOptions(responses={sample.id: response}), "fail")
    llm = checkpoint.llm
    inputs, mask = teacher_forced_inputs([item], [item.embedded])
    rows, row_mask = generating_rows([len(item.prompt)], [len(response)])
    source_on = cache(torch.tensor(item.prompt.positions(Segment.SOURCE)).to)
    norms: list[torch.Tensor] = []

    def visit(layer: LayerAttention) -> None:
        source = source_on(layer.alpha.device)
        norms.append(row_norms(layer.alpha[..., source], layer.value[:, :, source], layer.metric)[0].float())

    with capture(llm) as captured, captured.at_rows(rows, row_mask, visit):
        llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1)
    return torch.stack([of_layer.to(inputs.device) for of_layer in norms]).cpu().numpy()


def _place_words(sample: Sample, waveform: NDArray[np.float32]) -> tuple[list[Word] | None, str | None]:
    """The words with their times, or why they have none."""
    if sample.text is None:
        return None, "the transcript is not known"
    language = find_language(sample.language)
    if language is not None and language.code != "en":
        return None, f"words are placed in English speech alone, and this is {sample.language!r}"
    letters = [character for character in sample.text if character.isalpha()]
    if 2 * sum(letter.isascii() for letter in letters) < len(letters):  # if `language` is not set
        return None, "words are placed in English speech alone, and the transcript is in another script"
    try:
        return word_times(waveform, sample.text), None
    except InputError as error:
        return None, str(error)
