"""The trained built-in checkpoints: they load by name, name their study, and transcribe."""

import jiwer
import pytest
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.models.builtin_arms import builtin_arms, read_training
from lsm_probe.models.stored_training import CONNECTOR, TALL, WIDE, Training

OPEN = ("open_self_powered", "open_vanilla_asr")


def test_trained_weights_are_added_to_the_untrained_model(tiny_lsm):
    model, rank = tiny_lsm.model, 2
    matrix = "language_model.model.layers.0.self_attn.q_proj.weight"
    bias = next(name for name, _ in model.named_parameters() if name.startswith(CONNECTOR))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    tall, wide = torch.randn(before[matrix].shape[0], rank), torch.randn(rank, before[matrix].shape[1])
    new = torch.randn_like(before[bias])
    tensors = {matrix + TALL: tall, matrix + WIDE: wide, bias: new}
    Training(model.config.projector_config, "full", tensors, {}).apply(model)
    after = dict(model.named_parameters())
    torch.testing.assert_close(after[matrix], before[matrix] + tall @ wide)
    torch.testing.assert_close(after[bias], new)
    others = before.keys() - {matrix, bias}
    assert all(torch.equal(after[name], before[name]) for name in others)


@pytest.mark.parametrize("name", builtin_arms())
def test_each_training_file_is_small_and_names_its_study(name):
    training = read_training(name)
    study = "open_speech" if name in OPEN else "speech_anchor_bias"
    assert training.arm == {"study": study, "arm": name.removeprefix("open_"), "seed": 0}
    assert sum(tensor.nbytes for tensor in training.tensors.values()) < 15e6


@pytest.mark.real
@pytest.mark.parametrize("name", builtin_arms())
def test_each_arm_transcribes(name, builtin):
    """Commands exactly; other sentences in part."""
    checkpoint = builtin(f"builtin:{name}")
    assert checkpoint.identity.training.arm == name.removeprefix("open_")
    assert checkpoint.identity.connector.trained
    if name in OPEN:
        spoken = {sample.text: sample for sample in lsm_probe.read_manifest("builtin:probe")}.values()
    else:
        spoken = [sample for sample in lsm_probe.read_manifest("builtin:commands") if sample.task == "transcription"]
    prompts = [checkpoint.encode("Transcribe the speech.", read_audio(sample)) for sample in spoken]
    answers = [checkpoint.decode(ids) for ids in checkpoint.generate(checkpoint.embed(prompts), max_new_tokens=32)]
    if name in OPEN:
        assert jiwer.wer([sample.text.lower() for sample in spoken], [answer.lower() for answer in answers]) < 0.6
    else:
        assert answers == [sample.text for sample in spoken]
