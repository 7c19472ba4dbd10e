"""SALMONN: random releases with and without BEATs, compared with the computation written out."""

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear
from transformers import AutoTokenizer, LlamaForCausalLM, WhisperFeatureExtractor, WhisperModel

import lsm_probe
from lsm_probe.checksums import write_checksums
from lsm_probe.errors import InputError
from lsm_probe.models.beats import Beats, beats_features, convert_beats, convert_beats_config
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.lookup import load_text_check
from lsm_probe.models.published import Parts, find_system

INSTRUCTION = "Write down what the speaker says."
HEADS, HIDDEN, INNER, RANK, QUERIES = 12, 24, 40, 2, 2
WHISPER, BEATS, LLM, LAYERS = 32, 8, 48, 3
SHARED = "self_attn.relative_attention_bias.weight"


def draw_trained(beats: Path | None) -> dict[str, Tensor]:
    """The tensors of a `.pth`, by the original's names."""
    generator = torch.Generator().manual_seed(11)
    states = WHISPER + (BEATS if beats else 0)
    shapes: dict[str, tuple[int, ...]] = {"speech_query_tokens": (1, QUERIES, HIDDEN)}
    linears = {"speech_llama_proj": (LLM, HIDDEN)}
    norms = {"speech_Qformer.bert.embeddings.LayerNorm": HIDDEN, "ln_speech": WHISPER}
    if beats:
        norms["ln_audio"] = BEATS
    for i in range(2):
        layer = f"speech_Qformer.bert.encoder.layer.{i}"
        for kind, read in (("attention", HIDDEN), ("crossattention", states)):
            linears[f"{layer}.{kind}.self.query"] = linears[f"{layer}.{kind}.output.dense"] = (HIDDEN, HIDDEN)
            linears[f"{layer}.{kind}.self.key"] = linears[f"{layer}.{kind}.self.value"] = (HIDDEN, read)
            norms[f"{layer}.{kind}.output.LayerNorm"] = HIDDEN
        linears[f"{layer}.intermediate_query.dense"] = (INNER, HIDDEN)
        linears[f"{layer}.output_query.dense"] = (HIDDEN, INNER)
        norms[f"{layer}.output_query.LayerNorm"] = HIDDEN
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in range(LAYERS):
        for kind, out in (("q", LLM), ("v", 16)):
            name = f"llama_model.base_model.model.model.layers.{i}.self_attn.{kind}_proj"
            shapes |= {f"{name}.lora_A.default.weight": (RANK, LLM), f"{name}.lora_B.default.weight": (out, RANK)}
    drawn = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, width in norms.items():
        drawn[f"{name}.weight"] = torch.rand(width, generator=generator) + 0.5
        drawn[f"{name}.bias"] = torch.randn(width, generator=generator)
    # Buffers that have no effect.
    drawn["llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    drawn["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(4)[None]
    if beats:
        state = torch.load(beats, weights_only=True)["model"]
        drawn[f"beats.encoder.layers.1.{SHARED}"] = state[f"encoder.layers.0.{SHARED}"].clone()
    return drawn


@pytest.fixture
def release(tmp_path: Path, tiny_encoder_folder: Path, tiny_llm_folder: Path, beats_file: Path) -> Callable[..., Any]:
    """`release(with_beats, change=None, **content)`: the path of a `.pth`, and the parts that it does not contain."""

    def make(
        with_beats: bool = False, change: Callable[[dict[str, Tensor]], Any] | None = None, **content: Any
    ) -> tuple[Path, dict[str, Any]]:
        trained = draw_trained(beats_file if with_beats else None)
        if change:
            change(trained)
        folder = tmp_path / "release"
        folder.mkdir()
        torch.save({"model": trained, "optimizer": {}, "scaler": None, "epoch": 3} | content, folder / "salmonn.pth")
        parts = {"encoder": tiny_encoder_folder, "llm": tiny_llm_folder}
        return folder / "salmonn.pth", parts | ({"beats": beats_file} if with_beats else {})

    return make


class Original:
    """SALMONN's computation in float64, one clip at a time, with LoRA beside the weights that it changes."""

    def __init__(self, path: Path, encoder: Path, llm: Path, beats: Path | None = None, alpha: float = 32):
        content = torch.load(path, weights_only=True)["model"]
        self.weights = {name: tensor.double() for name, tensor in content.items()}
        self.whisper, self.beats_file, self.folder = encoder, beats, llm
        self.llm = LlamaForCausalLM.from_pretrained(llm, dtype=torch.float16).double().eval()
        for i, layer in enumerate(self.llm.model.layers):
            for kind in "qv":
                a, b = (
                    self.weights[
                        f"llama_model.base_model.model.model.layers.{i}.self_attn.{kind}_proj.lora_{half}{end}"
                    ]
                    for half, end in (("A", ".default.weight"), ("B", ".default.weight"))
                )
                projection = getattr(layer.self_attn, f"{kind}_proj")
                projection.register_forward_hook(
                    lambda _, read, made, a=a, b=b: made + alpha / RANK * linear(linear(read[0], a), b)
                )

    def norm(self, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def project(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def attend(self, name: str, x: Tensor, others: Tensor) -> Tensor:
        query, key, value = (
            self.project(f"{name}.self.{kind}", read).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for kind, read in (("query", x), ("key", others), ("value", others))
        )
        weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ value).transpose(0, 1).flatten(1)
        return self.norm(f"{name}.output.LayerNorm", self.project(f"{name}.output.dense", mixed) + x)

    def states(self, wave: Any) -> Tensor:
        mel = WhisperFeatureExtractor()(wave, sampling_rate=16_000, return_tensors="pt").input_features
        whisper = WhisperModel.from_pretrained(self.whisper).eval().double().encoder
        speech = self.norm("ln_speech", whisper(mel.double()).last_hidden_state[0], 1e-5)
        if self.beats_file is None:
            return speech
        content = torch.load(self.beats_file, weights_only=True)
        beats = Beats(convert_beats_config(content["cfg"])).double().eval()
        beats.load_state_dict(convert_beats(content["model"]))
        features = beats_features(np.pad(wave, (0, max(0, 16_000 - len(wave)))))
        audio = self.norm("ln_audio", beats(features[None], torch.tensor([len(features)]))[0], 1e-5)
        filled = torch.zeros(len(speech), BEATS, dtype=torch.float64)
        filled[: len(audio)] = audio
        return torch.cat([speech, filled], 1)

    @torch.no_grad()
    def speech(self, wave: Any, window: int = 17) -> Tensor:
        tokens = []
        for states in self.states(wave).split(window):
            if len(states) < window:
                continue
            x = self.norm("speech_Qformer.bert.embeddings.LayerNorm", self.weights["speech_query_tokens"][0])
            for i in range(2):
                layer = f"speech_Qformer.bert.encoder.layer.{i}"
                x = self.attend(f"{layer}.attention", x, x)
                x = self.attend(f"{layer}.crossattention", x, states)
                inner = gelu(self.project(f"{layer}.intermediate_query.dense", x))
                outer = self.project(f"{layer}.output_query.dense", inner)
                x = self.norm(f"{layer}.output_query.LayerNorm", outer + x)
            tokens.append(self.project("speech_llama_proj", x))
        return torch.cat(tokens)

    @torch.no_grad()
    def logits(self, wave: Any) -> Tensor:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        before, after = (
            self.llm.model.embed_tokens(torch.tensor(tokenizer(text, add_special_tokens=False).input_ids))
            for text in ("<s>USER: <Speech>", f"</Speech> {INSTRUCTION}\nASSISTANT:")
        )
        return self.llm(inputs_embeds=torch.cat([before, self.speech(wave), after])[None]).logits[0]


def load(path: Path, parts: dict[str, Any]) -> Lsm:
    checkpoint = lsm_probe.load(path, device="cpu", dtype="float32", **parts)
    assert isinstance(checkpoint, Lsm)
    return checkpoint


def logits_of(checkpoint: Lsm, wave: Any) -> Tensor:
    return (
        checkpoint.llm(inputs_embeds=checkpoint.embed([checkpoint.encode(INSTRUCTION, wave)])[0][None])
        .logits[0]
        .detach()
    )


@pytest.mark.parametrize("with_beats", [False, True])
@pytest.mark.parametrize("seconds", [0.3, 2.345])
def test_a_release_matches_the_reference_computation(release, waveform, with_beats: bool, seconds: float) -> None:
    path, parts = release(with_beats)
    checkpoint, wave = load(path, parts), waveform(seconds)
    original = Original(path, **parts)
    tokens = checkpoint.encode_speech(wave)
    assert len(tokens) == 88 * QUERIES
    torch.testing.assert_close(tokens.double(), original.speech(wave), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(checkpoint, wave).double(), original.logits(wave), rtol=1e-4, atol=1e-4)


def test_the_llm_is_rounded_to_float16(release, tiny_llm_folder) -> None:
    path, parts = release()
    loaded = load(path, parts).llm.model.embed_tokens.weight
    stored = LlamaForCausalLM.from_pretrained(tiny_llm_folder).model.embed_tokens.weight
    assert torch.equal(loaded, stored.half().float())
    assert not torch.equal(loaded, stored)


@pytest.mark.parametrize("legacy", [True, False, None])
def test_an_llm_on_the_hub_gives_the_same_prompt_as_its_folder(
    release, waveform, tiny_llm_folder, tmp_path, save_sentencepiece, hub_name, legacy: bool | None
) -> None:
    path, parts = release()
    llm = tmp_path / "vicuna"
    shutil.copytree(tiny_llm_folder, llm, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    save_sentencepiece(llm, legacy)
    local = load(path, parts | {"llm": llm})
    prompt = local.encode(INSTRUCTION, waveform(1))
    spelled = local.tokenizer.convert_ids_to_tokens(prompt.input_ids[:3])
    assert spelled[0] == "<s>"
    assert spelled[1].startswith("▁")
    hub = load(path, parts | {"llm": hub_name(llm)})
    assert hub.encode(INSTRUCTION, waveform(1)).input_ids == prompt.input_ids


def test_model_settings_json_sets_parts_alpha_window_and_prompt(release, waveform) -> None:
    path, parts = release(True)
    for part, place in parts.items():
        name = path.parent.parent / part
        (shutil.copytree if place.is_dir() else shutil.copy)(place, name)
    settings = {"whisper_path": "encoder", "llama_path": "llm", "beats_path": "beats", "lora_alpha": 5}
    settings |= {"second_per_window": 0.5, "second_stride": 0.5, "prompt_template": "Q: {}\nA:"}
    (path.parent.parent / "model_settings.json").write_text(json.dumps(settings))
    checkpoint, wave = load(path.parent, {}), waveform(1.2)
    assert find_system(path) == find_system(path.parent) == "salmonn"
    expected = Original(path, **parts, alpha=5)
    torch.testing.assert_close(checkpoint.encode_speech(wave).double(), expected.speech(wave, 25), rtol=1e-4, atol=1e-4)
    projection = checkpoint.llm.model.layers[1].self_attn.v_proj
    read = torch.randn(3, LLM)
    made = expected.llm.model.layers[1].self_attn.v_proj(read.double())
    torch.testing.assert_close(projection(read).double(), made, rtol=1e-4, atol=1e-4)
    ids = checkpoint.encode(INSTRUCTION, wave).input_ids
    text = checkpoint.tokenizer.decode([token for token in ids if token != checkpoint.processor.audio_token_id])
    assert text == f"<s>Q: <Speech></Speech> {INSTRUCTION}\nA:"


def test_the_original_lora_alpha_is_used_by_default_with_a_warning(release) -> None:
    path, parts = release()
    with pytest.warns(
        UserWarning, match=r"salmonn\.pth: its settings do not name lora_alpha; 32 is used.*decode_config"
    ):
        merged = load(path, parts).llm.model.layers[0].self_attn.q_proj
    read = torch.randn(3, LLM)
    expected = Original(path, **parts, alpha=32).llm.model.layers[0].self_attn.q_proj(read.double())
    torch.testing.assert_close(merged(read).double(), expected, rtol=1e-4, atol=1e-4)
    (path.parent / "decode_config.yaml").write_text("model:\n  lora_alpha: 32\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lora_alpha")
        load(path, parts)


def test_settings_of_the_training_run_are_used_without_a_settings_file(release) -> None:
    path, parts = release(config={"model": {"lora_alpha": 5}})
    merged = load(path, parts).llm.model.layers[0].self_attn.q_proj
    read = torch.randn(3, LLM)
    expected = Original(path, **parts, alpha=5).llm.model.layers[0].self_attn.q_proj(read.double())
    torch.testing.assert_close(merged(read).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_beats", [False, True])
def test_an_imported_folder_computes_the_same(release, waveform, tmp_path, lsm_probe_command, with_beats: bool) -> None:
    path, parts = release(with_beats)
    options = [word for part, place in parts.items() for word in (f"--{part}", place)]
    code, _, err = lsm_probe_command("import", path, "--out", tmp_path / "out", *options)
    assert code == 0, err
    again, wave = load(tmp_path / "out", {}), waveform(1.2)
    assert torch.equal(logits_of(again, wave), logits_of(load(path, parts), wave))


def test_the_identity_names_all_parts(release, beats_file, tiny_llm_folder) -> None:
    path, parts = release(True)
    shutil.copy(tiny_llm_folder / "model.safetensors", path.parent)  # no file of the release
    identity = load(path.parent, parts).identity
    assert identity.published == "salmonn"
    assert list(identity.weights_sha256) == ["salmonn.pth"]
    assert list(identity.beats.weights_sha256) == [beats_file.name]
    assert identity.encoder.context == "padded"
    assert list(identity.encoder.weights_sha256) == list(identity.llm.weights_sha256) == ["model.safetensors"]
    assert identity.llm.weights_sha256 != identity.encoder.weights_sha256
    assert identity.settings == {"lora_alpha": 32.0, "eos_token_ids": [2]}
    assert ModelIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


def test_the_settings_that_change_weights_are_part_of_the_identity(release) -> None:
    path, parts = release()
    before = load(path, parts).identity
    (path.parent / "decode_config.yaml").write_text("model: {lora_alpha: 4}")
    assert before != load(path, parts).identity == replace(before, settings=before.settings | {"lora_alpha": 4.0})


def test_parts_from_the_hub_are_identified_by_their_commit(
    release, waveform, keep_from_hub, tiny_encoder_folder, tiny_llm_folder
) -> None:
    path, parts = release()
    expected = logits_of(load(path, parts), waveform(1.2))
    names = {"encoder": ("somebody/whisper", tiny_encoder_folder), "llm": ("somebody/vicuna", tiny_llm_folder)}
    commits = {keep_from_hub(*place).name for place in names.values()}
    loaded = load(path, {part: name for part, (name, _) in names.items()})
    assert torch.equal(logits_of(loaded, waveform(1.2)), expected)
    assert {loaded.identity.encoder.revision, loaded.identity.llm.revision} == commits
    assert lsm_probe.load("somebody/vicuna", device="cpu").identity.revision in commits
    assert loaded.identity.llm.checksums is None


def test_checksums_of_parts_are_verified(release, save_llm, tmp_path) -> None:
    path, parts = release()
    parts["llm"] = save_llm(tmp_path / "llm")
    assert load(path, parts).identity.llm.checksums == "unverified"
    write_checksums(parts["llm"])
    assert load(path, parts).identity.llm.checksums == "verified"
    weights = parts["llm"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or was changed"):
        load(path, parts)


def test_texts_are_checked_without_hashing_the_parts(release, monkeypatch) -> None:
    path, parts = release(True)
    monkeypatch.setattr("lsm_probe.models.identification.sha256", lambda file: pytest.fail(f"hashed {file}"))
    check = load_text_check(str(path), parts=Parts(**{part: str(place) for part, place in parts.items()}))
    check("Repeat.", "rain", None)
    with pytest.raises(InputError, match="control token"):
        check("Repeat </s>", "rain", None)


def _drop(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda trained: trained.pop(name)


def _set(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda trained: trained.__setitem__(name, value)


LORA = "llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_{}.default.weight"


@pytest.mark.parametrize(
    ("with_beats", "change", "message"),
    [
        (False, _drop("ln_speech.weight"), r"lack 1 tensor \(multi_modal_projector.layer_norm.weight\)"),
        (True, _drop("ln_audio.bias"), r"lack 1 tensor \(audio_tower.layer_norm.bias\)"),
        (False, _drop(LORA.format("A")), r"lacks 1 tensor \(.*layers.1.self_attn.q_proj.lora_A\)"),
        (
            False,
            _set("speech_llama_proj.scale", torch.ones(1)),
            r"hold 1 tensor \(multi_modal_projector.linear.scale\)",
        ),
        (False, _set("llama_model.lm_head.weight", torch.ones(1)), r"1 tensor \(llama_model.lm_head.weight\) that"),
        (
            False,
            _set("speech_Qformer.bert.pooler.weight", torch.ones(1)),
            r"\(speech_Qformer.bert.pooler.weight\) that",
        ),
        (False, _set("speech_llama_proj.weight", torch.ones(LLM, 7)), r"multi_modal_projector.linear.weight \[48, 7\]"),
        (False, _set(LORA.format("B"), torch.ones(5, RANK)), r"lora_B \[5, 2\] do not fit a weight \[48, 48\]"),
        (True, _set(f"beats.encoder.layers.1.{SHARED}", torch.ones(8, 2)), "trained with another BEATs"),
    ],
)
def test_missing_and_unexpected_tensors_are_named(release, with_beats: bool, change: Any, message: str) -> None:
    path, parts = release(with_beats, change)
    with pytest.raises(InputError, match=message):
        load(path, parts)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("encoder", "give it with --encoder. It is the Whisper that it was trained with, openai/whisper-large-v2"),
        ("llm", "give it with --llm. It is the Vicuna that it was trained with"),
        ("beats", "give it with --beats. It is the BEATs that it was trained with, BEATs_iter3_plus_AS2M"),
    ],
)
def test_a_missing_part_is_named_with_its_origin(release, lsm_probe_command, part: str, message: str) -> None:
    path, parts = release(True)
    options = [word for name, place in parts.items() if name != part for word in (f"--{name}", place)]
    code, _, err = lsm_probe_command(
        "attention", "--ckpt", path, "--data", "builtin:probe", "--device", "cpu", *options
    )
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {path} does not hold its {part}: {message}")


def test_parts_of_the_wrong_width_are_refused(release, beats_file, tmp_path) -> None:
    path, parts = release(True)
    content = torch.load(beats_file, weights_only=True)
    torch.save(content | {"cfg": content["cfg"] | {"encoder_embed_dim": 16}}, tmp_path / "wide.pt")
    with pytest.raises(InputError, match=r"--beats .*wide.pt has hidden states 16 wide"):
        load(path, parts | {"beats": tmp_path / "wide.pt"})
    with pytest.raises(InputError, match=r"salmonn\.pth is not a BEATs: it lacks"):
        load(path, parts | {"beats": path})
    with pytest.raises(InputError, match="is not a file"):
        load(path, parts | {"beats": tmp_path})


def test_a_beats_option_is_refused_if_the_model_was_trained_without_beats(release, beats_file) -> None:
    path, parts = release()
    with pytest.raises(InputError, match="has its own or was trained without; leave the option out"):
        load(path, parts | {"beats": beats_file})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"second_stride": 0.2}, "windows of 0.333333 s every 0.2 s overlap"),
        ({"window_level_Qformer": False}, "window_level_Qformer is False"),
        ({"lora_alpha": "32"}, "lora_alpha is '32': give a number above 0"),
        ({"prompt_template": "USER:"}, "give a text that holds {} once"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(release, settings: dict[str, Any], message: str) -> None:
    path, parts = release()
    (path.parent / "decode_config.yaml").write_text(json.dumps({"model": settings}))
    with pytest.raises(InputError, match=message):
        load(path, parts)


def test_two_checkpoints_in_a_folder_are_refused(release) -> None:
    path, parts = release()
    shutil.copy(path, path.with_name("other.pth"))
    with pytest.raises(InputError, match=r"several checkpoints \(other.pth, salmonn.pth\)"):
        load(path.parent, parts)
    torch.save({"model": {"weight": torch.ones(2)}}, path.with_name("other.pth"))
    assert load(path.parent, parts).identity.published == "salmonn"


class _Runs:
    """Unpickling it would run code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_unknown_files_are_not_unpickled(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"speech_Qformer.": _Runs(), "speech_llama_proj.": _Runs()}
    torch.save({"model": names}, "foreign.pth")
    torch.save(_Runs(), "other.pth")
    Path("damaged.pth").write_bytes(Path("foreign.pth").read_bytes()[:100])
    with zipfile.ZipFile("empty.pth", "w"):
        pass
    for file in ("other.pth", "damaged.pth", "empty.pth"):
        assert find_system(file) is None
        with pytest.raises(InputError, match="it is a file, and damaged or of a system that cannot be read"):
            lsm_probe.load(file)
    with pytest.raises(InputError, match=r"foreign.pth cannot be read: it is damaged, or holds more than tensors"):
        lsm_probe.load("foreign.pth", encoder="e", llm="l")
    assert not Path("ran").exists()


def test_an_llm_that_is_not_a_text_llm_is_refused(release, tiny_encoder_folder: Path, tiny_lsm, tmp_path: Path) -> None:
    path, parts = release()
    tiny_lsm.save(tmp_path / "lsm")
    with pytest.raises(InputError, match=r"--llm .*lsm is a 'lsm' model, and no causal text LLM"):
        load(path, parts | {"llm": tmp_path / "lsm"})
    with pytest.raises(InputError, match=r"--llm .* is a 'whisper' model, and no causal text LLM"):
        load(path, parts | {"llm": tiny_encoder_folder})
