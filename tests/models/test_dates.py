"""Chat templates that write the date: prompts and results do not depend on the day."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.dates import DATE, with_date
from lsm_probe.models.lookup import load_prompter

SAMPLE = Sample(id="a", instruction="Repeat.", text="the rain", target="the rain")
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}'
    "<|im_start|>system\nToday Date: {{ date_string }}<|im_end|>\n"
)
IN_A_MACRO = (
    "{% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}\n<|im_start|>system\n{{ day() }}<|im_end|>\n"
)


@pytest.fixture
def save_dated(
    save_llm: Callable[..., Path], make_tokenizer: Callable[..., Any], tmp_path: Path
) -> Callable[..., Path]:
    """`save_dated(head)`: a text LLM whose chat template begins with `head`."""

    def save(head: str) -> Path:
        turns = make_tokenizer().chat_template.split("{% endif %}", 1)[1]
        return save_llm(tmp_path / "dated", chat_template=head + turns)

    return save


@pytest.fixture
def on_day(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`on_day("2031-03-01")`: sets the current date that transformers sees."""

    def move(day: str) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime.fromisoformat(day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return move


def prompt_of(checkpoint: Any) -> str:
    return str(checkpoint.tokenizer.decode(checkpoint.encode(SAMPLE.instruction, SAMPLE.text).input_ids))


@pytest.mark.parametrize(("head", "written"), [(LLAMA, "Today Date: 26 Jul 2024<"), (IN_A_MACRO, "\n2024-07-26<")])
def test_prompts_and_numbers_do_not_depend_on_the_day(
    save_dated: Callable[..., Path], on_day: Callable[[str], None], head: str, written: str
) -> None:
    folder = save_dated(head)
    results = []
    for day in ("2026-11-29", "2031-03-01"):
        on_day(day)
        checkpoint = lsm_probe.load(folder)
        assert written in prompt_of(checkpoint)
        results.append(lsm_probe.attention(checkpoint, [SAMPLE], response="reference"))
    assert results[0].to_dict() == results[1].to_dict()
    assert results[0].checkpoint.model.date == DATE


def test_another_date_changes_prompt_and_identity(save_dated: Callable[..., Path]) -> None:
    folder = save_dated(LLAMA)
    default, other = lsm_probe.load(folder), lsm_probe.load(folder, date="2031-03-01")
    assert "Today Date: 01 Mar 2031<" in prompt_of(other)
    assert other.identity.date == "2031-03-01"
    assert other.identity.prompt_sha256 != default.identity.prompt_sha256
    assert load_prompter(folder, date="2031-03-01").identity == other.identity


def test_a_template_without_a_date_ignores_the_option_with_a_warning(
    tiny_llm_folder: Path, save_dated: Callable[..., Path]
) -> None:
    assert lsm_probe.load(tiny_llm_folder).identity.date is None
    assert lsm_probe.load(save_dated(LLAMA), template="vicuna").identity.date is None
    with pytest.warns(UserWarning, match=r"--date 2031-03-01 has no effect: the prompt template of .* writes no date"):
        lsm_probe.load(tiny_llm_folder, date="2031-03-01")


@pytest.mark.parametrize("date", ["today", "2024-02-30", "26 Jul 2024", ""])
def test_an_invalid_date_is_refused(tiny_llm_folder: Path, date: str) -> None:
    with pytest.raises(InputError, match=r"^--date '.*' is not a date: write it as 2024-07-26$"):
        lsm_probe.load(tiny_llm_folder, date=date)


def test_a_saved_lsm_keeps_its_date_unless_another_is_given(
    save_dated: Callable[..., Path],
    tiny_encoder_folder: Path,
    tiny_projector: Callable[..., LsmProjectorConfig],
    tmp_path: Path,
) -> None:
    built = lsm_probe.build_lsm(tiny_encoder_folder, save_dated(LLAMA), projector=tiny_projector())
    built.save(tmp_path / "lsm")
    kept, other = lsm_probe.load(tmp_path / "lsm"), lsm_probe.load(tmp_path / "lsm", date="2031-03-01")
    assert "Today Date: 26 Jul 2024<" in prompt_of(kept)
    assert "Today Date: 01 Mar 2031<" in prompt_of(other)
    assert kept.identity.prompt_sha256 == built.identity.prompt_sha256
    assert other.identity.date == "2031-03-01"
    other.save(tmp_path / "of_2031")
    assert lsm_probe.load(tmp_path / "of_2031").identity.date == "2031-03-01"


@pytest.mark.parametrize("day", ["2024-07-06", "2030-12-31"])
def test_every_code_equals_strftime(
    make_tokenizer: Callable[..., Any], on_day: Callable[[str], None], day: str
) -> None:
    codes = " ".join(f"%{code}" for code in "aAbBcdDeFfGhHIjmMpRSTuUVwWxXyY%") + " %-d %-m %-H %-I %-j %-y!"
    tokenizer = make_tokenizer("\n {%- if true %} {{ strftime_now('" + codes + "') }}{% endif %}\n\nend\n")
    on_day(day)
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    on_day("1999-01-01")
    with_date(tokenizer, day)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == expected


def test_an_interrupted_run_is_not_resumed_with_another_date(save_dated: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_dated(LLAMA)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    samples = [SAMPLE, SAMPLE.model_copy(update={"id": "b"})]
    running = {"response": "reference", "progress_folder": tmp_path / "progress", "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        lsm_probe.attention(lsm_probe.load(folder), samples, on_progress=interrupt, **running)
    with pytest.raises(InputError, match="interrupted run with another checkpoint"):
        lsm_probe.attention(lsm_probe.load(folder, date="2031-03-01"), samples, **running)
    lsm_probe.attention(lsm_probe.load(folder), samples, **running)


def test_the_command_line_option_sets_the_date(
    save_dated: Callable[..., Path], lsm_probe_command: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "clips.jsonl"
    data.write_text(SAMPLE.model_dump_json(exclude_none=True) + "\n")
    command = ("attention", "--ckpt", save_dated(LLAMA), "--data", data, "--response", "reference", "--json")
    code, stdout, _ = lsm_probe_command(*command, "--out", tmp_path / "out", "--date", "2031-03-01")
    assert code == 0
    assert json.loads(stdout)["results"][0]["checkpoint"]["date"] == "2031-03-01"
    assert lsm_probe_command(*command, "--out", tmp_path / "other", "--date", "soon")[0] == 2
