"""The identity of a checkpoint as it is stored with results."""

import json

import pytest

from lsm_probe.errors import InputError
from lsm_probe.models.identity import (
    ConnectorIdentity,
    EncoderIdentity,
    ModelIdentity,
    TrainingIdentity,
    WeightsIdentity,
)

WEIGHTS = {"model.safetensors": "ab"}
STORED = {
    "model_type": "lsm",
    "revision": "c0ffee",
    "checksums": "verified",
    "weights_sha256": WEIGHTS,
    "encoder": {"model_type": "whisper", "weights_sha256": WEIGHTS, "context": "trimmed", "decoder_states": None},
    "llm": {"model_type": "llama"},
    "connector": {"connector": "frame_stack", "window": 5, "seed": 3, "trained": False},
    "prompt_sha256": "cd",
    "date": "2024-07-26",
    "training": {"study": "speech_anchor_bias", "arm": "vanilla_asr", "seed": 0, "sha256": "ef"},
    "transcriber": {"model_type": "whisper", "weights_sha256": WEIGHTS},
}
IDENTITY = ModelIdentity(
    model_type="lsm",
    revision="c0ffee",
    checksums="verified",
    weights_sha256=WEIGHTS,
    encoder=EncoderIdentity(model_type="whisper", weights_sha256=WEIGHTS, context="trimmed"),
    llm=WeightsIdentity(model_type="llama"),
    connector=ConnectorIdentity(settings={"connector": "frame_stack", "window": 5}, seed=3, trained=False),
    prompt_sha256="cd",
    date="2024-07-26",
    training=TrainingIdentity(study="speech_anchor_bias", arm="vanilla_asr", seed=0, sha256="ef"),
    transcriber=WeightsIdentity(model_type="whisper", weights_sha256=WEIGHTS),
)


def test_an_identity_is_stored_as_plain_values_in_a_fixed_order():
    assert json.dumps(IDENTITY.to_dict()) == json.dumps(STORED)
    assert ModelIdentity.from_dict(STORED) == IDENTITY


def test_missing_values_are_left_out():
    assert ModelIdentity().to_dict() == {}
    assert ModelIdentity.from_dict({}) == ModelIdentity()
    untrained_seedless = ConnectorIdentity(settings={"connector": "conv"}, trained=True)
    assert untrained_seedless.to_dict() == {"connector": "conv", "trained": True}
    assert ConnectorIdentity.from_dict(untrained_seedless.to_dict()) == untrained_seedless


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wheights": 1, "colour": 2}, "^ModelIdentity has unknown keys: colour, wheights$"),
        ({"llm": {"wheights": 1}}, "^WeightsIdentity has unknown keys: wheights$"),
        ({"training": {"study": "a", "arm": "b"}}, "^TrainingIdentity lacks: seed, sha256$"),
        ({"connector": {"connector": "conv"}}, "^ConnectorIdentity lacks: trained$"),
        ({"encoder": "whisper"}, "^EncoderIdentity is 'whisper': it must be a JSON object$"),
        ({"connector": None}, "^ConnectorIdentity is None: it must be a JSON object$"),
    ],
)
def test_invalid_stored_values_are_refused_by_name(changed, message):
    with pytest.raises(InputError, match=message):
        ModelIdentity.from_dict(STORED | changed)
