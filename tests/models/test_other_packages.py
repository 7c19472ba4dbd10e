"""Connectors and prompt templates that an installed package adds through entry points."""

import pytest
import torch

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.connectors import CONNECTORS
from lsm_probe.models.templates import TEMPLATES
from lsm_probe.training.config import ModelSettings

CONNECTOR = '''
import torch
from torch import nn
from lsm_probe.models.connectors import Connector

class MeanPool(Connector):
    """The mean of every `stride` states, a learned vector added."""

    sizes = {"stride": 8}

    def __init__(self, config, *, encoder_dim, llm_dim):
        super().__init__(config, encoder_dim=encoder_dim, llm_dim=llm_dim)
        self.stride = config.stride
        self.linear = nn.Linear(encoder_dim, llm_dim)
        self.added = nn.Parameter(torch.empty(llm_dim))

    @staticmethod
    def token_states(config, num_states):
        return [(i, min(i + config.stride, num_states)) for i in range(0, num_states, config.stride)]

    def init_own_parameters(self, config):
        self.added.fill_(0.5)

    def forward(self, states, lengths):
        pooled = [
            piece[i : min(i + self.stride, length)].mean(0)
            for piece, length in zip(states, lengths.tolist())
            for i in range(0, length, self.stride)
        ]
        return self.linear(torch.stack(pooled)) + self.added
'''
TEMPLATE = """
from lsm_probe.models.segments import Segment

def question(tokenizer, instruction, source):
    return [
        (Segment.TEMPLATE, "Q: "),
        (Segment.INSTRUCTION, instruction),
        (Segment.TEMPLATE, " "),
        (Segment.SOURCE, source),
        (Segment.TEMPLATE, " A:"),
    ]
"""


@pytest.fixture
def other_connector(install_package):
    install_package("lsm_probe.connectors", {"mean_pool": "other_package:MeanPool"}, CONNECTOR)
    CONNECTORS.__dict__.pop("_from_entry_points", None)
    yield
    CONNECTORS.__dict__.pop("_from_entry_points", None)


@pytest.fixture
def other_template(install_package):
    install_package("lsm_probe.templates", {"question": "other_package:question"}, TEMPLATE)
    TEMPLATES.__dict__.pop("_from_entry_points", None)
    yield
    TEMPLATES.__dict__.pop("_from_entry_points", None)


@pytest.mark.parametrize(("settings", "stride"), [({}, 8), ({"stride": 3}, 3)])
def test_a_connector_is_built_saved_and_loaded(
    other_connector, tiny_encoder_folder, tiny_llm_folder, waveform, tmp_path, settings, stride
):
    projector = LsmProjectorConfig(connector="mean_pool", **settings)
    built = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=projector)
    assert (built.connector.added == 0.5).all()
    assert built.identity.to_dict()["connector"]["stride"] == stride
    prompt = built.encode("Repeat.", waveform(1))
    embedded = built.embed([prompt])[0]
    assert len(built.speech_token_times(16_000)) == len(range(0, 50, stride))
    built.save(tmp_path / "saved")
    loaded = lsm_probe.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert type(loaded.connector) is type(built.connector)
    assert loaded.model.config.projector_config.stride == stride
    again = loaded.encode("Repeat.", waveform(1))
    assert again.input_ids == prompt.input_ids
    assert torch.equal(loaded.embed([again])[0], embedded)


def test_a_training_config_accepts_the_settings_of_a_connector(other_connector):
    settings = ModelSettings(connector={"connector": "mean_pool", "stride": 4})
    assert settings.projector().stride == 4
    with pytest.raises(ValueError, match="has no setting 'stride'"):
        ModelSettings(connector={"connector": "conv", "stride": 4})
    with pytest.raises(InputError, match="connector 'mean_pool': stride is 0"):
        ModelSettings(connector={"connector": "mean_pool", "stride": 0}).projector()


def test_an_unknown_connector_is_refused_with_all_known_names(other_connector):
    with pytest.raises(InputError, match=r"'pool' is unknown; choose one of: conv, .*, window_qformer, mean_pool$"):
        LsmProjectorConfig(connector="pool")


def test_a_registered_template_makes_prompts_with_speech_and_text(
    other_template, tiny_encoder_folder, tiny_llm_folder, tiny_projector, waveform, tmp_path
):
    text = lsm_probe.load(tiny_llm_folder, device="cpu", template="question")
    prompt = text.encode("Repeat.", "rain")
    assert text.tokenizer.decode(prompt.input_ids) == "Q: Repeat. rain A:"
    built = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(), template="question")
    built.save(tmp_path / "saved")
    loaded = lsm_probe.load(tmp_path / "saved", device="cpu")
    assert loaded.template.name == "question"
    assert loaded.encode("Repeat.", waveform(1)).segments == built.encode("Repeat.", waveform(1)).segments


def test_an_unknown_template_is_refused_with_all_known_names(other_template, tiny_llm_folder):
    with pytest.raises(InputError, match=r"'questions' is unknown; give a YAML file, or one of: .*, question$"):
        lsm_probe.load(tiny_llm_folder, template="questions")
