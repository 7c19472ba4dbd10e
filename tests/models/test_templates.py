"""Prompt templates: built-in ones, YAML files of the user, and those in a checkpoint's folder."""

from pathlib import Path

import pytest

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.prompts import encode_prompt
from lsm_probe.models.segments import Segment
from lsm_probe.models.templates import TEMPLATES, find_template

OWN = """
bos: 0
prompt:
  - system: "Be brief."
  - template: " Q: "
  - instruction
  - template: {speech: " A", text: " T: "}
  - source
"""


def write(folder: Path, content: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def text_of(checkpoint, prompt, segment=None):
    kept = [i for i, own in zip(prompt.input_ids, prompt.segments, strict=True) if segment in (None, own)]
    return checkpoint.tokenizer.decode(kept)


def test_a_yaml_file_defines_the_prompt_of_a_text_llm(tiny_llm_folder, tmp_path):
    checkpoint = lsm_probe.load(tiny_llm_folder, device="cpu", template=str(write(tmp_path, OWN)))
    prompt = checkpoint.encode("Repeat {source}", "rain")
    assert text_of(checkpoint, prompt) == "Be brief. Q: Repeat {source} T: rain"
    assert text_of(checkpoint, prompt, Segment.SYSTEM) == "Be brief."
    assert text_of(checkpoint, prompt, Segment.INSTRUCTION).strip() == "Repeat {source}"
    assert text_of(checkpoint, prompt, Segment.SOURCE).strip() == "rain"
    assert checkpoint.template.name == "own"


def test_an_lsm_folder_contains_its_template(tiny_encoder_folder, tiny_llm_folder, tiny_projector, waveform, tmp_path):
    template = str(write(tmp_path, OWN))
    built = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(), template=template)
    built.save(tmp_path / "lsm")
    assert (tmp_path / "lsm" / "prompt_template.yaml").read_text() == OWN
    Path(template).unlink()
    loaded = lsm_probe.load(tmp_path / "lsm", device="cpu")
    assert loaded.template.name == "lsm"
    before, after = (checkpoint.encode("Repeat.", waveform(1)) for checkpoint in (built, loaded))
    assert (before.input_ids, before.segments) == (after.input_ids, after.segments)
    assert loaded.identity.prompt_sha256 == built.identity.prompt_sha256


def test_a_built_in_template_keeps_its_name_in_a_folder(tiny_encoder_folder, tiny_llm_folder, tiny_projector, tmp_path):
    options = {"projector": tiny_projector(), "template": "llama_omni"}
    lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, **options).save(tmp_path / "lsm")
    assert lsm_probe.load(tmp_path / "lsm", device="cpu").template.name == "llama_omni"


@pytest.mark.parametrize("bos", [0, 1, 2])
def test_a_template_sets_the_number_of_bos_tokens(tiny_tokenizer, tmp_path, bos):
    path = write(tmp_path, f"bos: {bos}\nprompt: [instruction, {{template: ' '}}, source]")
    prompt = encode_prompt(tiny_tokenizer, str(path), "Repeat.", "rain")
    assert prompt.input_ids.count(tiny_tokenizer.bos_token_id) == bos
    assert prompt.segments[:bos] == [Segment.TEMPLATE] * bos


def test_text_before_and_after_the_source_can_be_tokenised_separately(tiny_tokenizer, tmp_path):
    parts = "prompt: [instruction, source, {template: 'fall'}]\nbos: 0\n"
    whole = encode_prompt(tiny_tokenizer, str(write(tmp_path, parts)), "rain", "rain")
    split = encode_prompt(tiny_tokenizer, str(write(tmp_path, parts + "split_at_source: true")), "rain", "rain")

    def ids(text):
        return list(tiny_tokenizer(text, add_special_tokens=False)["input_ids"])

    assert whole.input_ids == ids("rainrainfall")
    assert split.input_ids == ids("rain") + ids("rain") + ids("fall")
    assert split.count(Segment.SOURCE) == len(ids("rain"))


def test_messages_may_contain_a_system_turn(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[reply]")
    own = "messages: [{role: system, content: '{instruction}'}, {role: user, content: '{source}'}]"
    prompt = encode_prompt(tokenizer, str(write(tmp_path, own)), "Repeat.", "rain")
    assert tokenizer.decode(prompt.input_ids) == "[system] Repeat. [user] rain [reply]"
    assert Segment.SYSTEM not in prompt.segments


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("prompt: [instruction]", "the source must stand in it once, and stands in it 0 times"),
        ("prompt: [source, source]", "stands in it 2 times"),
        ("prompt: [source]\nmessages: [{role: user, content: '{source}'}]", "give either `prompt` or `messages`"),
        ("bos: 1\nmessages: [{role: user, content: '{source}'}]", "a chat template writes its own BOS"),
        ("prompt: [{words: hello}, source]", "own.yaml is not a prompt template: prompt.0"),
        ("bos: -1\nprompt: [source]", "bos: Input should be greater than or equal to 0"),
        ("prompt: [source", "is not valid YAML"),
        ("- source", "is not a prompt template"),
        ("", "is not a prompt template"),
        ("prompt: [source]\nprompt: [instruction, source]", "the key 'prompt' is there twice"),
        ("prompt: " + 3000 * "[" + "source", "nested too deeply"),
        ("bos: " + 5000 * "1" + "\nprompt: [source]", "is not valid YAML"),
    ],
)
def test_an_invalid_template_file_is_refused_with_the_reason(tmp_path, content, reason):
    with pytest.raises(InputError) as refused:
        find_template(write(tmp_path, content))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_description_that_looks_like_a_date_is_read_as_text(tmp_path):
    assert find_template(write(tmp_path, "description: 2024-99-99\nprompt: [source]")).name == "own"


def test_a_missing_file_is_refused(lsm_probe_command, tiny_llm_folder, tmp_path):
    code, _, err = lsm_probe_command("attention", "--ckpt", tiny_llm_folder, "--template", tmp_path / "none.yaml")
    assert code == 2
    assert err.splitlines()[-1].endswith("none.yaml cannot be read (No such file or directory): check the path")


def test_every_built_in_template_comes_from_a_file_with_a_description():
    for name in TEMPLATES.built_in:
        assert find_template(name).content.startswith("description: ")
