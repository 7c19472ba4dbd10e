"""The kinds of checkpoints, made by hand as well as by `load`."""

from dataclasses import replace

import pytest
import torch

from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm, TextLlm, require_lsm
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.segments import Segment


def test_an_lsm_made_by_hand_takes_speech_and_text(tiny_lsm, waveform):
    made = Lsm("mine", tiny_lsm.model, tiny_lsm.processor)
    assert (made.tokenizer, made.template) == (tiny_lsm.processor.tokenizer, tiny_lsm.template)
    assert (made.source, made.identity) == ("speech", ModelIdentity())
    assert made.llm is tiny_lsm.model.language_model
    assert made.connector is tiny_lsm.model.multi_modal_projector
    prompt = made.encode("Repeat.", waveform(1))
    assert torch.equal(made.embed([prompt])[0], tiny_lsm.embed([prompt])[0])
    assert len(made.speech_token_times(16_000)) == prompt.count(Segment.SOURCE)
    reading = replace(made, source="text")
    assert (reading.name, reading.source, reading.template) == ("mine", "text", made.template)
    assert reading.encode("Repeat.", "rain").input_ids == made.encode("Repeat.", "rain").input_ids


def test_a_text_llm_made_by_hand_reads_text(tiny_llm):
    made = TextLlm("mine", tiny_llm.model, tiny_llm.tokenizer, "vicuna")
    assert (made.source, made.processor, made.connector) == ("text", None, None)
    assert made.speech_token_times(16_000) is None
    assert made.encode("Repeat.", "rain", source_length=9).count(Segment.SOURCE) == 9


def test_what_needs_an_lsm_of_ours_refuses_others_in_one_line(tiny_lsm, tiny_llm):
    assert require_lsm(tiny_lsm, "give one") is tiny_lsm
    with pytest.raises(InputError, match=f"^{tiny_llm.name} is no LSM of ours: give one$"):
        require_lsm(tiny_llm, "give one")
    with pytest.raises(InputError, match=r"^model\.start=x is no LSM of ours: give one$"):
        require_lsm(tiny_llm, "give one", name="model.start=x")
