"""MMLU: a folder of CSV files becomes tasks of lm-evaluation-harness; answers equal those of its own model."""

import csv
import logging
import sys
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.evaluation.harness import Harness
from lsm_probe.evaluation.mmlu import GROUPS, Mmlu, Subject, read_mmlu, write_mmlu_tasks

PROMPT = """The following are multiple choice questions (with answers) about anatomy.

Which fox jumps?
A. quick
B. brown
C. lazy
D. old
Answer: C

Where does rain fall?
A. town
B. shore
C. sea
D. forest
Answer:"""


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def original(folder, to):
    """The same data in the format of the original release: no header, answers as letters."""
    for path in folder.glob("*/*.csv"):
        (to / path.parent.name).mkdir(parents=True, exist_ok=True)
        with (to / path.parent.name / path.name).open("w", newline="") as file:
            csv.writer(file).writerows([*row[:5], "ABCD"[int(row[5])]] for row in rows_of(path)[1:])
    return to


def answers(checkpoint, mmlu, folder, *, shots=2, batch_size=8):
    """The harness's record of each question, by subject."""
    tasks = write_mmlu_tasks(mmlu, folder)
    harness = Harness(checkpoint, folder, shots=shots, batch_size=batch_size)
    return {name: harness.run(task) for name, task in zip(mmlu.subjects, tasks, strict=True)}


def likelihoods(found):
    return np.array([[value for value, _ in row["filtered_resps"]] for rows in found.values() for row in rows])


def test_both_file_formats_give_the_same_questions(mmlu_folder, tmp_path):
    header = read_mmlu(mmlu_folder)
    assert list(header.subjects) == ["anatomy", "sociology", "world_religions"]
    assert header.questions == 21
    rows = rows_of(mmlu_folder / "test" / "anatomy_test.csv")[1:]
    assert header.subjects["anatomy"].test == [
        {"question": row[0], "choices": row[1:5], "answer": int(row[5])} for row in rows
    ]
    assert read_mmlu(original(mmlu_folder, tmp_path / "original" / "mmlu")) == header


def test_a_limit_keeps_the_first_questions_and_all_examples(mmlu_folder):
    whole, limited = read_mmlu(mmlu_folder), read_mmlu(mmlu_folder, questions=2)
    for name, subject in limited.subjects.items():
        assert subject.test == whole.subjects[name].test[:2]
        assert subject.dev == whole.subjects[name].dev
    assert limited.describe().sha256 != whole.describe().sha256
    assert limited.describe().n_samples == 6


def test_all_subjects_are_known_each_in_one_of_four_groups(tmp_path):
    folder = tmp_path / "all"
    for path in (resources.files("lm_eval") / "tasks" / "mmlu" / "default").iterdir():
        if path.name.startswith("mmlu_"):
            write_subject(folder, path.name.removeprefix("mmlu_").removesuffix(".yaml"))
    found = read_mmlu(folder).subjects
    assert len(found) == 57
    sizes = {group: sum(subject.group == group for subject in found.values()) for group in GROUPS}
    assert sizes == {"stem": 19, "humanities": 13, "social_sciences": 12, "other": 13}


def write_subject(folder, name, *, dev=("Q?,a,b,c,d,A",), test=("Q?,a,b,c,d,B",)):
    for split, lines in (("dev", dev), ("test", test)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / f"{name}_{split}.csv").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere holds no test/<subject>_test.csv"),
        (lambda folder: write_subject(folder, "cookery"), "cookery_test.csv is not a subject of MMLU"),
        (lambda folder: write_subject(folder, "virology", test=("Q?,a,b,c,d,E",)), "virology_test.csv, line 1: not a"),
        (lambda folder: write_subject(folder, "virology", dev=("Q?,a,b,c,d,A", "Q?,a,b")), "virology_dev.csv, line 2:"),
        (lambda folder: write_subject(folder, "virology", dev=()), "virology_dev.csv holds no questions"),
        (lambda folder: write_subject(folder, "virology", test=('"Q?,a',)), "virology_test.csv cannot be read as CSV"),
    ],
)
def test_a_folder_that_is_not_mmlu_is_refused_in_one_line(mmlu_folder, broken, message):
    with pytest.raises(InputError) as info:
        read_mmlu(broken(mmlu_folder))
    assert message in str(info.value)


def test_a_subject_without_its_examples_is_refused(mmlu_folder):
    (mmlu_folder / "dev" / "sociology_dev.csv").unlink()
    with pytest.raises(InputError, match=r"has no dev/sociology_dev.csv beside"):
        read_mmlu(mmlu_folder)


def test_a_missing_harness_is_reported_with_the_extra_to_install(mmlu_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"^MMLU needs lm-evaluation-harness .*: pip install .*lm-eval"):
        read_mmlu(mmlu_folder)


def test_the_prompt_equals_that_of_the_mmlu_authors(tiny_llm, tmp_path):
    example = {"question": "Which fox jumps?", "choices": ["quick", "brown", "lazy", "old"], "answer": 2}
    asked = {"question": "Where does rain fall? ", "choices": ["town", "shore", "sea", "forest"], "answer": 1}
    mmlu = Mmlu("by hand", {"anatomy": Subject("stem", [example], [asked])})
    (row,) = answers(tiny_llm, mmlu, tmp_path, shots=1)["anatomy"]
    assert row["arguments"] == [(PROMPT, f" {letter}") for letter in "ABCD"]
    assert row["target"] == 1


def test_answers_equal_those_of_the_harness_own_model(tiny_llm, tiny_llm_folder, mmlu_folder, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = tmp_path / "tasks"
    mmlu = read_mmlu(mmlu_folder, questions=5)
    ours = answers(tiny_llm, mmlu, tasks)
    accuracies = lsm_probe.text_ability(tiny_llm, mmlu=mmlu, shots=2).accuracies
    write_mmlu_tasks(read_mmlu(mmlu_folder), tasks)  # all questions: the limit is the harness's
    theirs = simple_evaluate(
        "hf",
        f"pretrained={tiny_llm_folder},dtype=float32",
        tasks=[f"mmlu_{name}" for name in ours],
        task_manager=TaskManager(include_path=str(tasks)),
        num_fewshot=2,
        limit=5,
        batch_size=8,
        device="cpu",
    )
    for name, rows in ours.items():
        accuracy = theirs["results"][f"mmlu_{name}"]["acc,none"]
        assert accuracies[name].value == pytest.approx(100 * accuracy, abs=1e-9)
        noted = sorted(theirs["samples"][f"mmlu_{name}"], key=lambda row: row["doc_id"])
        assert [row["acc"] for row in rows] == [row["acc"] for row in noted]
        found = [[float(value) for value, _ in row["filtered_resps"]] for row in noted]
        np.testing.assert_allclose([[value for value, _ in row["filtered_resps"]] for row in rows], found, atol=1e-5)
    assert len({accuracy.value for accuracy in accuracies.values()}) > 1


def test_the_llm_inside_an_lsm_gives_the_same_answers_as_alone(tiny_lsm, tiny_llm, mmlu_folder, tmp_path):
    mmlu = read_mmlu(mmlu_folder)
    alone, inside = (answers(model, mmlu, tmp_path / model.name[-3:]) for model in (tiny_llm, tiny_lsm))
    np.testing.assert_allclose(likelihoods(inside), likelihoods(alone), atol=1e-5)


def test_answers_do_not_depend_on_batch_size_or_available_memory(tiny_llm, mmlu_folder, tmp_path):
    mmlu = Mmlu("one", {"anatomy": read_mmlu(mmlu_folder).subjects["anatomy"]})
    one = likelihoods(answers(tiny_llm, mmlu, tmp_path / "1", batch_size=1))
    np.testing.assert_allclose(likelihoods(answers(tiny_llm, mmlu, tmp_path / "8")), one, atol=1e-5)
    forward, refused = tiny_llm.model.forward, []

    def out_of_memory(input_ids, **others):
        if len(input_ids) > 5:
            refused.append(len(input_ids))
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return forward(input_ids, **others)

    tiny_llm.model.forward = out_of_memory
    np.testing.assert_allclose(likelihoods(answers(tiny_llm, mmlu, tmp_path / "few")), one, atol=1e-5)
    assert refused


def test_answers_of_sparse_attention_models_do_not_depend_on_batch_size(tiny_llm, mmlu_folder, tmp_path):
    """In a padded batch, Doge would choose other keys: see `test_families.py`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": 1024, "keep_window_size": 16}
    config = AutoConfig.for_model("doge", vocab_size=tiny_llm.llm.config.vocab_size, **sizes)
    doge = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in doge.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    mmlu = read_mmlu(mmlu_folder, questions=4)
    mmlu = Mmlu("one", {"anatomy": mmlu.subjects["anatomy"]})
    many, one = (
        likelihoods(answers(replace(tiny_llm, model=doge), mmlu, tmp_path / str(size), batch_size=size))
        for size in (8, 1)
    )
    np.testing.assert_array_equal(many, one)


def test_the_harness_prints_nothing_and_restores_global_state(tiny_llm, mmlu_folder, tmp_path, capfd, caplog):
    from lm_eval.models import huggingface
    from tqdm import tqdm

    tiny_llm.tokenizer.pad_token = None
    levels = [logging.getLogger(name).level for name in ("lm_eval", "datasets")]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    answers(tiny_llm, read_mmlu(mmlu_folder), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert tiny_llm.tokenizer.pad_token is None
    assert huggingface.tqdm is tqdm
    assert [logging.getLogger(name).level for name in ("lm_eval", "datasets")] == levels
    assert torch.get_rng_state().equal(states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


def test_files_made_from_the_data_stay_in_the_folder(tiny_llm, mmlu_folder, tmp_path):
    answers(tiny_llm, read_mmlu(mmlu_folder), tmp_path / "tasks")
    assert {path.name for path in (tmp_path / "tasks").iterdir()} == {
        *(f"mmlu_{name}.yaml" for name in ("anatomy", "sociology", "world_religions")),
        *("data", "cache"),
    }
    assert any((tmp_path / "tasks" / "cache").rglob("*.arrow"))


def test_prompts_that_the_harness_truncates_are_reported(tiny_llm, mmlu_folder, tmp_path):
    mmlu = read_mmlu(mmlu_folder, questions=3)
    rows = [row for rows in answers(tiny_llm, mmlu, tmp_path).values() for row in rows]
    lengths = sorted(len(tiny_llm.tokenizer(row["arguments"][0][0])["input_ids"]) for row in rows)
    assert not any(row["cut"] for row in rows)
    tiny_llm.model.config.max_position_embeddings = lengths[-1] - 1
    cut = [row["cut"] for rows in answers(tiny_llm, mmlu, tmp_path).values() for row in rows]
    assert 1 <= sum(cut) < len(cut)


def test_log_probabilities_that_are_not_finite_are_refused(tiny_llm, mmlu_folder, tmp_path):
    with torch.no_grad():
        tiny_llm.model.model.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match=r"question 0 of mmlu_anatomy: the log-probability .* is not finite"):
        answers(tiny_llm, read_mmlu(mmlu_folder), tmp_path)
