"""What all measurement commands share: with --json only JSON on stdout, and one line for every error.

The probes' own tests cover what each measurement refuses; here are errors that the command line finds first.
"""

import json
import shlex

import pytest
import soundfile

TEXTS = ["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green", "nobody knows", "dog"]
INSTRUCTIONS = {"translation": "Translate the speech.", "repetition": "Repeat it.", "answer": "Answer in one word."}
ANOTHER_LINE = {
    "not-json": "{oops",
    "no-source": '{"id": "x", "text": "y"}',
    "no-file": '{"id": "x", "instruction": "Do.", "audio": "no.wav"}',
    "corrupt": '{"id": "x", "instruction": "Do it.", "audio": "corrupt.wav"}',
    "empty": '{"id": "x", "instruction": "Do it.", "audio": "empty.wav"}',
    "void": '{"id": "void", "instruction": "\\u0020\\u00a0", "text": "green"}',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, waveform, write, tiny_llm_folder, tiny_lsm_folder):
    """Checkpoints `llm` and `lsm`, six spoken samples in `clips.jsonl`, and manifests with mistakes."""
    folder = tmp_path_factory.mktemp("measurements")
    (folder / "llm").symlink_to(tiny_llm_folder)
    (folder / "lsm").symlink_to(tiny_lsm_folder)
    rows = []
    for i, text in enumerate(TEXTS):
        soundfile.write(folder / f"{i}.wav", waveform(0.5 + i / 2, seed=i), 16_000)
        task = list(INSTRUCTIONS)[i % 3]
        row = {"id": f"s{i}", "task": task, "instruction": INSTRUCTIONS[task], "audio": f"{i}.wav"}
        rows.append(row | {"text": text, "target": text})
    lines = [json.dumps(row) for row in rows]
    write(folder / "clips.jsonl", *lines)
    write(folder / "nothing.jsonl")
    write(folder / "no-target.jsonl", *(json.dumps({k: v for k, v in row.items() if k != "target"}) for row in rows))
    for name, line in ANOTHER_LINE.items():
        write(folder / f"{name}.jsonl", *lines, line)
    write(folder / "corrupt.wav", "RIFF no sound at all")
    (folder / "empty.wav").touch()
    return folder


@pytest.fixture
def measure(lsm_probe_command, folder, tmp_path, monkeypatch):
    """`measure(command, options)` on the LSM and the six samples, unless the options name others."""
    monkeypatch.chdir(folder)

    def run(command, options, call=lsm_probe_command):
        given = shlex.split(options)
        named = () if "--ckpt" in given else ("--ckpt", "lsm")
        data = () if "--data" in given else ("--data", "clips.jsonl")
        return call(command, *named, *data, "--out", tmp_path / "out", *given)

    return run


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("attention", "--max-new-tokens 4"),
        ("sensitivity", "--max-new-tokens 4"),
        ("knockout", "--max-new-tokens 4"),
        ("alignment", "--perplexity 4"),
        ("importance", "--limit 2 --mode signed --masks 0.05 --write-lr-schedule rates.yaml"),
        ("text-ability", "--ckpt llm"),
    ],
)
def test_with_json_stdout_has_the_result_only(measure, strict, tmp_path, command, options):
    code, stdout, stderr = measure(command, f"{options} --json")
    assert code == 0, stderr
    printed = strict(stdout)
    assert printed["results"] == [strict((tmp_path / "out" / "result.json").read_text())]
    assert printed["comparison"] is None


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("attention", "--data none.jsonl", "none.jsonl"),
        ("attention", "--data nothing.jsonl", "nothing.jsonl"),
        ("attention", "--data not-json.jsonl", "line 7"),
        ("attention", "--data no-source.jsonl", "line 7"),
        ("attention", "--data no-file.jsonl", "no.wav"),
        ("attention", "--data corrupt.jsonl", "corrupt.wav"),
        ("attention", "--data empty.jsonl", "empty.wav"),
        ("attention", "--ckpt llm --data void.jsonl", "void"),
        ("attention", "--ckpt llm --ckpt llm", "llm"),
        ("attention", "--heads max", "not one of 'sum_then_norm', 'mean_of_norms'"),
        ("attention", "--span all", "instruction+template"),
        ("attention", "--template alpaca", "give a YAML file, or one of: chat, chat_source_first, llama3, vicuna"),
        ("attention", "--device abacus", "--device abacus"),
        ("attention", "--dtype int3", "'--dtype': 'int3'"),
        ("attention", "--on-error hope", "'hope' is not one of 'fail', 'skip'"),
        ("attention", "--batch-size many", "--batch-size 'many'"),
        ("attention", "--response reference --data no-target.jsonl", "`target`"),
        ("attention", "--responses .", "holds no readable result"),
        ("sensitivity", "--per word", "'word' is not one of 'token', 'response'"),
        ("sensitivity", "--pool words", "'words' is not one of 'tasks', 'paraphrases'"),
        ("sensitivity", "--response gold", "'gold' is not one of 'generated', 'reference'"),
        ("sensitivity", "--instructions magic", "--instructions magic does not exist"),
        ("sensitivity", "--instructions clips.jsonl", "cannot be read as YAML"),
        ("sensitivity", "--responses .", "holds no readable result with responses"),
        ("importance", "--ablate -0.5", "--ablate -0.5 is not a share of weights"),
        ("importance", "--mode squared", "'squared' is not one of 'abs', 'signed'"),
        ("importance", "--modality touch", "'touch' is not one of 'own', 'text'"),
        ("importance", "--response gold", "'gold' is not one of 'generated', 'reference'"),
        ("importance", "--strength 1", "--strength 1.0 is out of range"),
        ("importance", "--responses .", "holds no readable result with responses"),
        ("alignment", "--segment system", "'system' is not one of 'source', 'prompt', 'response'"),
        ("alignment", "--segment response --response mine", "'mine' is not one of 'generated', 'reference'"),
        ("alignment", "--perplexity 4 --layer -2", "has no state -2: choose from 0"),
        ("knockout", "--single-heads --layers 3", "has layers 0 to 2"),
        ("knockout", "--single-heads --layers 2-1", "neither a layer nor a range"),
        ("knockout", "--single-heads --layers 0-99999", "neither a layer nor a range"),
        ("knockout", f"--single-heads --layers {'9' * 5000}", "neither a layer nor a range"),
        ("knockout", "--single-heads --layers some", "neither a layer nor a range"),
        ("knockout", "--single-heads --layers 1-", "neither a layer nor a range"),
        ("knockout", "--layers 1", "give --single-heads too"),
        ("timeline", "--ckpt llm", "is a text LLM"),
        ("timeline", "--sample s9", "--sample s9 is not in the manifest"),
        ("timeline", "--response loud", "'loud' is not one of 'generated', 'reference'"),
        ("timeline", "--response reference --data no-target.jsonl", "`target`"),
        ("timeline", "--data none.jsonl", "none.jsonl"),
    ],
    ids=lambda value: value[:40],
)
def test_invalid_arguments_give_one_line_and_exit_code_2(measure, refusal, tmp_path, command, options, message):
    assert message in measure(command, options, refusal)
    assert not list((tmp_path / "out").rglob("result.json")) + list((tmp_path / "out").rglob("timeline.json"))
