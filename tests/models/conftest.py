"""The tiny LSM in every shape: each connector, Whisper's decoder in the tower, and speech without trailing silence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lsm_probe
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "window_qformer": {},
    "frame_stack": {},
    "conv": {},
    "swiglu_stack": {},
    "transformer": {},
    "window_qformer-trimmed": {"encoder_context": "trimmed"},
    "conv-trimmed": {"encoder_context": "trimmed"},
    "transformer-trimmed": {"encoder_context": "trimmed"},
    "swiglu_stack-clip": {"encoder_context": "clip"},
    "linear-decoder": {"decoder_states": 7},
    "frame_stack-decoder": {"decoder_states": 7},
}


@pytest.fixture(scope="session")
def build_shape(
    tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Callable[..., LsmProjectorConfig]
) -> Callable[..., Checkpoint]:
    """`build_shape(name)`: a fresh LSM of that shape, which a test may change."""

    def build(name: str) -> Checkpoint:
        connector = name.split("-")[0]
        projector = tiny_projector() if connector == "window_qformer" else LsmProjectorConfig(connector=connector)
        return lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=projector, **SHAPES[name])

    return build


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, build_shape: Callable[..., Checkpoint]) -> Checkpoint:
    """The LSM in each of its shapes."""
    return build_shape(request.param)


@pytest.fixture(scope="session")
def beats_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the format of BEATs' authors: two layers of width 8, random weights. Do not write into it."""
    cfg = {"input_patch_size": 16, "embed_dim": 6, "conv_bias": False, "activation_fn": "gelu", "deep_norm": True}
    cfg |= {"encoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 12, "encoder_attention_heads": 2}
    cfg |= {"layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 8}
    cfg |= {"max_distance": 7, "conv_pos": 4, "conv_pos_groups": 2}
    linear = {"post_extract_proj": (8, 6)}
    norms = {"layer_norm": 6, "encoder.layer_norm": 8}
    shapes: dict[str, tuple[int, ...]] = {"patch_embedding.weight": (6, 1, 16, 16), "encoder.pos_conv.0.bias": (8,)}
    shapes |= {"encoder.pos_conv.0.weight_g": (1, 1, 4), "encoder.pos_conv.0.weight_v": (8, 4, 4)}
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        attention = f"{layer}.self_attn"
        linear |= {f"{attention}.{name}_proj": (8, 8) for name in ("q", "k", "v", "out")}
        linear |= {f"{attention}.grep_linear": (8, 4), f"{layer}.fc1": (12, 8), f"{layer}.fc2": (8, 12)}
        norms |= {f"{layer}.{name}": 8 for name in ("self_attn_layer_norm", "final_layer_norm")}
        shapes |= {f"{attention}.grep_a": (1, 2, 1, 1), f"{attention}.relative_attention_bias.weight": (8, 2)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(3)
    state = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    shared = "self_attn.relative_attention_bias.weight"
    state[f"encoder.layers.1.{shared}"] = state[f"encoder.layers.0.{shared}"].clone()
    path = tmp_path_factory.mktemp("beats") / "beats.pt"
    torch.save({"cfg": cfg, "model": state}, path)
    return path


@pytest.fixture(scope="session")
def save_sentencepiece() -> Callable[..., None]:
    """`save_sentencepiece(folder, legacy=True)`: a Llama's `tokenizer.model` with its settings; None: no `legacy`."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="reads and trains tokenizer.model")

    def save(folder: Path, legacy: bool | None = True) -> None:
        words = ["the speaker says what she sells by the sea", "write down what is said and repeat it twice"]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=310,
            byte_fallback=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        (folder / "tokenizer.vocab").unlink()
        settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        settings |= {"unk_token": "<unk>"} | ({} if legacy is None else {"legacy": legacy})
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    return save


@pytest.fixture
def keep_from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """`keep_from_hub(name, folder)`: puts a folder's files into the local cache of the model hub, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef" * 2 + "01234567"

    def keep(name: str, folder: Path) -> Path:
        kept = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, kept / "snapshots" / commit)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text(commit)
        return kept / "snapshots" / commit

    return keep


@pytest.fixture
def hub_name(keep_from_hub: Callable[[str, Path], Path]) -> Callable[[Path], str]:
    """`hub_name(folder)`: copies the folder into the local cache of the model hub and returns its name there."""

    def keep(folder: Path) -> str:
        keep_from_hub("somebody/llama", folder)
        return "somebody/llama"

    return keep
