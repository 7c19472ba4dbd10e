"""The command line in this process, and spoken samples to run it on."""

import json
from itertools import count

import pytest
import soundfile

from lsm_probe.data import speech

TEXTS = ["the quick brown fox", "rain falls softly", "the old town sells sea shells", "green"]
TASKS = [
    ("translation", "Translate the speech into German."),
    ("repetition", "Write down what the speaker says, and repeat it twice."),
    ("answer", "Answer the question about the speech in one word."),
]


@pytest.fixture
def quick_voice(monkeypatch):
    """Synthesises every twelfth text and reuses its audio for the others. Only with `--workers 1`, in this process."""
    synthesize, asked, spoken = speech.synthesize_text, count(), []

    def quick(text, voice, **how):
        if next(asked) % 12 == 0:
            spoken.append(synthesize(text, voice, **how))
        return spoken[-1]

    monkeypatch.setattr(speech, "synthesize_text", quick)


@pytest.fixture
def data(lsm_probe_command):
    """`data(*arguments)` runs `lsm-probe data`."""
    return lambda *arguments: lsm_probe_command("data", *arguments)


@pytest.fixture
def refusal(lsm_probe_command):
    """`refusal(*arguments)`: the error line of a command, which must end with exit code 2 and print nothing else."""

    def run(*arguments):
        code, stdout, stderr = lsm_probe_command(*arguments)
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert (code, stdout, len(errors)) == (2, "", 1), stderr
        assert "Traceback" not in stderr
        return errors[0]

    return run


@pytest.fixture
def rows(tmp_path, waveform):
    """Four spoken samples under three tasks in turn, with transcripts and targets."""
    found = []
    for i, text in enumerate(TEXTS):
        soundfile.write(tmp_path / f"{i}.wav", waveform(0.5 + i, seed=i), 16_000)
        task, instruction = TASKS[i % 3]
        row = {"id": f"s{i}", "task": task, "instruction": instruction, "audio": f"{i}.wav", "text": text}
        found.append(row | {"target": f"say {text}"})
    return found


@pytest.fixture
def manifest(tmp_path, rows, write):
    return write(tmp_path / "clips.jsonl", *map(json.dumps, rows))


@pytest.fixture
def run(request, lsm_probe_command, manifest, tmp_path):
    """`run(*checkpoints, options=..., out=...)` runs the module's `COMMAND` on the manifest."""

    def command(*checkpoints, options=(), out=tmp_path / "out"):
        named = [part for checkpoint in checkpoints for part in ("--ckpt", checkpoint)]
        return lsm_probe_command(*request.module.COMMAND, *named, "--data", manifest, "--out", out, *options)

    return command


@pytest.fixture(scope="session")
def files():
    """`files(folder)`: the names in a folder, without hidden ones such as the lock."""
    return lambda folder: {path.name for path in folder.glob("[!.]*")}


@pytest.fixture(scope="session")
def strict():
    """`strict(text)` parses JSON and fails at NaN and infinity, which are not valid JSON."""

    def refuse(constant):
        raise AssertionError(constant)

    return lambda text: json.loads(text, parse_constant=refuse)
