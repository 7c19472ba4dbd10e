"""Text LLMs in GGUF files, written by llama.cpp's own package from a tiny random Llama."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.lookup import load_text_check, look_up

IDS = torch.tensor([[5, 9, 200, 31, 7, 44]])
HEADS, GROUPS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def write(
    path: Path,
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    kind: Any = gguf.GGMLQuantizationType.F32,
    more: dict[str, np.ndarray[Any, Any]] | None = None,
    leave_out: str = "",
    rope_scaling: str = "none",
) -> Path:
    config = llama.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType(rope_scaling))
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3 if i < 5 else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in llama.state_dict().items():
        module, _, last = name.rpartition(".")
        layer = module.removeprefix("model.layers.").partition(".")
        where = f"blk.{layer[0]}.{NAMES[layer[2]]}" if layer[2] in NAMES else NAMES[module]
        written = f"{where}.{last}"
        if written == leave_out:
            continue
        data = tensor.numpy()
        if "attn_q" in written or "attn_k" in written:  # llama.cpp rotates neighbours, transformers halves
            heads = HEADS if "attn_q" in written else GROUPS
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        if data.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32:
            writer.add_tensor(written, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(written, np.ascontiguousarray(data))
    for name, data in (more or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(checkpoint: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = checkpoint.model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_gguf_file_gives_the_logits_of_the_original_model(tmp_path, llama, tokenizer, given):
    path = write(tmp_path / "tiny.gguf", llama, tokenizer)
    with pytest.warns(UserWarning, match="weights are dequantised from GGUF"):
        checkpoint = lsm_probe.load(path if given == "file" else tmp_path, device="cpu")
    with torch.no_grad():
        expected = llama(input_ids=IDS).logits
    assert (logits(checkpoint) - expected).abs().max() < 1e-5
    assert checkpoint.template.name == "chat"
    prompt = checkpoint.encode("Repeat.", "the rain")
    assert checkpoint.tokenizer.decode(prompt.input_ids).startswith("<s><|im_start|>system\n")
    assert prompt.input_ids[0] == tokenizer.bos_token_id
    assert checkpoint.identity.model_type == "llama"
    assert checkpoint.identity.weights_sha256.keys() == {"tiny.gguf"}
    assert look_up(str(path)) == look_up(str(tmp_path)) == "text"
    load_text_check(str(path))("Repeat.", "the rain", None)


def test_loading_draws_no_random_weights(tmp_path, llama, tokenizer):
    path = write(tmp_path / "tiny.gguf", llama, tokenizer)
    with torch.no_grad():
        expected = llama(input_ids=IDS).logits
    drawn = torch.random.get_rng_state()
    checkpoint = lsm_probe.load(path, device="cpu", dtype="bfloat16")
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.bfloat16}
    assert (logits(checkpoint) - expected).abs().max() < 0.05 * expected.abs().max()


def test_quantised_weights_are_dequantised_exactly(tmp_path, llama, tokenizer):
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write(tmp_path / "tiny.gguf", llama, tokenizer, kind)
    for name, parameter in llama.named_parameters():
        if parameter.dim() == 2:
            # Blocks of 32 values along rows: the order of the rows does not matter.
            stored = gguf.quants.dequantize(gguf.quants.quantize(parameter.detach().numpy(), kind), kind)
            parameter.data = torch.from_numpy(np.array(stored)).to(parameter.dtype)
            assert stored.shape == parameter.shape, name
    checkpoint = lsm_probe.load(path, device="cpu")
    with torch.no_grad():
        expected = llama(input_ids=IDS).logits
    assert (logits(checkpoint) - expected).abs().max() < 1e-4
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}


def test_a_gguf_checkpoint_can_be_measured_and_saved(tmp_path, llama, tokenizer):
    checkpoint = lsm_probe.load(write(tmp_path / "tiny.gguf", llama, tokenizer), device="cpu")
    sample = lsm_probe.Sample(id="a", instruction="Repeat.", text="the rain", target="the rain")
    measured = lsm_probe.importance(checkpoint, [sample], response="reference")
    assert {parameter["layer"] for parameter in measured.parameters} == {None, 0, 1}
    checkpoint.save(tmp_path / "saved")
    assert torch.equal(logits(lsm_probe.load(tmp_path / "saved", device="cpu")), logits(checkpoint))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"more": {"rope_freqs.weight": np.ones(4, np.float32)}},
            "1 tensor (rope_freqs.weight) that transformers does",
        ),
        ({"more": {"mm.0.weight": np.ones((4, 4), np.float32)}}, "1 tensor (mm.0.weight)"),
        ({"leave_out": "blk.1.attn_q.weight"}, "lacks 1 tensor (model.layers.1.self_attn.q_proj.weight)"),
    ],
    ids=["rotary factors of Llama 3", "a projector", "a missing tensor"],
)
def test_missing_or_unused_tensors_are_refused(tmp_path, llama, tokenizer, options, message):
    path = write(tmp_path / "tiny.gguf", llama, tokenizer, **options)
    with pytest.raises(InputError) as error:
        lsm_probe.load(path)
    assert message in str(error.value)


def test_scaled_rotary_positions_are_refused(tmp_path, llama, tokenizer):
    path = write(tmp_path / "tiny.gguf", llama, tokenizer, rope_scaling="yarn")
    with pytest.raises(InputError, match=r"scales rotary positions \(yarn\), which transformers does not read"):
        lsm_probe.load(path)


def test_a_folder_with_several_files_is_refused(tmp_path, llama, tokenizer):
    path = write(tmp_path / "a.gguf", llama, tokenizer)
    shutil.copy(path, tmp_path / "b.gguf")
    with pytest.raises(InputError, match=r"holds a\.gguf, b\.gguf: give the path of the file"):
        lsm_probe.load(tmp_path)
    lsm_probe.load(path)


@pytest.mark.parametrize("kept", [0, 3, 100, 5000])
def test_a_damaged_file_is_refused(tmp_path, llama, tokenizer, kept):
    path = write(tmp_path / "tiny.gguf", llama, tokenizer)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="GGUF"):
        lsm_probe.load(path)


def test_an_architecture_without_gguf_support_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "clip.gguf", "clip")
    writer.add_name("projector")
    writer.add_tensor("v.blk.0.attn_q.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"clip\.gguf cannot be loaded: .*architecture clip.* Give the model in"):
        lsm_probe.load(tmp_path / "clip.gguf")
