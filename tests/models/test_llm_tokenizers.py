"""Llama tokenizers: a text LLM and LSMs made from it have the same ids, whatever file the tokenizer comes from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.llm_tokenizers import load_llm_tokenizer, read_tokenizer
from lsm_probe.models.lookup import load_prompter
from lsm_probe.models.prompts import encode_prompt
from lsm_probe.models.segments import Segment
from lsm_probe.models.templates import find_template

WORDS = ("Write down what is said.", "she sells")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEXTS = {
    "vicuna": [f"{SYSTEM} \n\nUSER: {WORDS[0]}\nSPEECH: {WORDS[1]}\nASSISTANT:"],
    "blsp": [f"###[Human]:{WORDS[0]}", WORDS[1], "\n\n\n###[Assistant]:"],
    "salmonn": ["USER: <Speech>", WORDS[1], f"</Speech> {WORDS[0]}\nASSISTANT:"],
}
"""What each template has tokenised, each text by itself; BOS stands before the first."""


@pytest.fixture(params=[True, False, None], ids=["legacy", "legacy-false", "legacy-missing"])
def legacy(request: pytest.FixtureRequest) -> bool | None:
    found: bool | None = request.param
    return found


@pytest.fixture(params=["tokenizer.model", "prepend", "first", "always"])
def llm_folder(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_llm_folder: Path,
    save_sentencepiece: Callable[..., None],
    legacy: bool | None,
) -> Path:
    """An LLM with Llama's `tokenizer.model`, or a `tokenizer.json` with one of the ways to write the first space."""
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm_folder, folder, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    save_sentencepiece(folder, legacy)
    if request.param != "tokenizer.model":
        content = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
        if request.param == "prepend":
            space = [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]
            content |= {"normalizer": {"type": "Sequence", "normalizers": space}, "pre_tokenizer": None}
        else:
            content["pre_tokenizer"]["prepend_scheme"] = request.param
        (folder / "tokenizer.json").write_text(json.dumps(content))
        (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    return folder


@pytest.fixture
def written_out(llm_folder: Path, tmp_path: Path) -> Callable[[str], list[int]]:
    """`written_out(template)`: the ids computed by sentencepiece."""
    from sentencepiece import SentencePieceProcessor

    file = next(path for path in (llm_folder / "tokenizer.model", tmp_path / "tokenizer.model") if path.is_file())
    processor: Any = SentencePieceProcessor(model_file=str(file))
    return lambda template: [processor.bos_id(), *(i for text in TEXTS[template] for i in processor.encode(text))]


@pytest.mark.parametrize("template", TEXTS)
def test_ids_are_those_of_sentencepiece(
    llm_folder: Path, written_out: Callable[[str], list[int]], template: str
) -> None:
    for read in (read_tokenizer, load_llm_tokenizer):
        prompt = encode_prompt(read(llm_folder), template, *WORDS)
        assert prompt.input_ids == written_out(template)
        assert prompt.segments[0] is Segment.TEMPLATE
        assert prompt.segments[1] is (Segment.SYSTEM if template == "vicuna" else Segment.TEMPLATE)


def test_a_text_llm_and_its_lsm_have_the_same_prompt(
    llm_folder: Path, tiny_encoder_folder: Path, tmp_path: Path, written_out: Callable[[str], list[int]]
) -> None:
    text_llm = lsm_probe.load(llm_folder, device="cpu", template="vicuna")
    assert text_llm.encode(*WORDS).input_ids == written_out("vicuna")
    assert load_prompter(llm_folder, template="vicuna").encode(*WORDS) == written_out("vicuna")
    projector = LsmProjectorConfig(connector="frame_stack")
    lsm_probe.build_lsm(tiny_encoder_folder, llm_folder, projector=projector, template="vicuna").save(tmp_path / "lsm")
    lsm = lsm_probe.load(tmp_path / "lsm", device="cpu")
    text = find_template("vicuna_text")  # the same words for speech and for text
    assert encode_prompt(lsm.tokenizer, text, *WORDS) == encode_prompt(text_llm.tokenizer, text, *WORDS)
    assert encode_prompt(lsm.tokenizer, "vicuna", *WORDS).input_ids == written_out("vicuna")


def test_spaces_and_special_tokens_inside_a_text_have_the_same_ids(llm_folder: Path) -> None:
    for text in (" she", "<s>she", "<s> she", "she</s>she", "she</s>\nshe"):
        found = [
            read(llm_folder)(text, add_special_tokens=False)["input_ids"]
            for read in (read_tokenizer, load_llm_tokenizer)
        ]
        assert found[0] == found[1]


def test_a_name_on_the_model_hub_gives_the_same_ids_as_its_folder(
    llm_folder: Path, written_out: Callable[[str], list[int]], hub_name: Callable[[Path], str]
) -> None:
    name = hub_name(llm_folder)
    for template in TEXTS:
        assert encode_prompt(read_tokenizer(name), template, *WORDS).input_ids == written_out(template)
    text_llm = lsm_probe.load(name, device="cpu", template="vicuna")
    assert text_llm.encode(*WORDS).input_ids == written_out("vicuna")


def test_other_tokenizers_are_loaded_by_transformers(tiny_llm_folder: Path) -> None:
    own = load_llm_tokenizer(tiny_llm_folder)
    stock: Any = AutoTokenizer.from_pretrained(tiny_llm_folder)
    assert type(own) is type(stock)
    messages = [{"role": "user", "content": "\n".join(WORDS)}]
    expected = stock.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encode_prompt(own, "chat", *WORDS).input_ids == expected


def test_a_name_that_is_not_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"somebody/none cannot be loaded"):
        read_tokenizer("somebody/none")
