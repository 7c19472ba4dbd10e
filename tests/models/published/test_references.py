"""Reference checkpoints of published systems, compared with the results of the original code.

The environment variable LSM_PROBE_PUBLISHED names the folder of references; without it these tests are skipped. The
tests of each system, in modules beside this one, need no such folder.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lsm_probe
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.templates import find_template

FOLDER = os.environ.get("LSM_PROBE_PUBLISHED")
LOGITS, SPEECH = 4e-5, 2e-5
"""Most by which logits and speech tokens may differ, of values up to about 6."""

RELEASED = {"llasm": "llasm_released"}
"""Templates of what the original computed where its prompt has no instruction; it may have one under `variants`."""
# System, folder of the release, and the folders of the parts that it does not contain.
RELEASES: list[tuple[str, str, dict[str, str]]] = [
    ("blsp", "checkpoint", {}),
    ("llama-omni", "checkpoint", {}),
    ("llasm", "checkpoint", {"encoder": "whisper"}),
    ("salmonn", "checkpoint", {"encoder": "whisper", "llm": "vicuna"}),
    ("salmonn-beats", "checkpoint", {}),
    ("self-powered", "checkpoint", {}),
    ("ultravox", "checkpoint", {}),
    ("ultravox", "checkpoint_tower", {"llm": "llama"}),
    ("ultravox", "checkpoint_projector", {"llm": "llama", "encoder": "whisper"}),
]


@pytest.mark.skipif(FOLDER is None, reason="LSM_PROBE_PUBLISHED names no folder of reference checkpoints")
@pytest.mark.parametrize(
    ("system", "folder", "parts"), RELEASES, ids=[f"{system}-{folder}" for system, folder, _ in RELEASES]
)
def test_a_reference_checkpoint_matches_the_original_code(system: str, folder: str, parts: dict[str, Any]) -> None:
    base = Path(str(FOLDER)) / system
    expected = json.loads((base / "expected.json").read_text(encoding="utf-8"))
    arrays = np.load(base / "expected.npz")
    places: dict[str, Any] = {part: base / place for part, place in parts.items()}
    model = lsm_probe.load(base / folder, device="cpu", dtype="float32", **places)
    assert isinstance(model, Lsm)
    own = model.template
    runs = [(clip, None, run) for clip, run in expected["clips"].items()]
    runs += [(clip, name, varied) for clip, _, run in runs for name, varied in run.get("variants", {}).items()]
    for clip, variant, run in runs:
        has_no_instruction = variant is None and system in RELEASED
        model.template = model.processor.template = find_template(RELEASED[system]) if has_no_instruction else own
        key = clip if variant is None else f"{clip}_{variant}"
        sample = lsm_probe.Sample(
            id=clip, instruction=expected["instruction"], audio=str(base / f"{clip}.wav"), text="words"
        )
        speech = [model.processor.audio_token_id] * run["num_speech_tokens"]
        assert model.prompt_ids(sample) == [*run["ids_before"], *speech, *run["ids_after"]]
        source = sample.read_source("speech")
        assert not isinstance(source, str)
        tokens = model.encode_speech(source).numpy()
        np.testing.assert_allclose(tokens, arrays[f"{clip}_speech"], rtol=0, atol=SPEECH)
        logits = model.logits(sample).numpy()[arrays[f"{key}_positions"]]
        np.testing.assert_allclose(logits, arrays[f"{key}_logits"], rtol=0, atol=LOGITS)
        embedded = model.embed([model.encode("" if has_no_instruction else sample.instruction, source)])
        assert model.generate(embedded, max_new_tokens=len(run["greedy_ids"])) == [run["greedy_ids"]]


@pytest.mark.skipif(FOLDER is None, reason="LSM_PROBE_PUBLISHED names no folder of reference checkpoints")
@pytest.mark.parametrize(
    ("system", "folder", "parts"), RELEASES, ids=[f"{system}-{folder}" for system, folder, _ in RELEASES]
)
def test_the_commands_measure_a_reference_checkpoint(
    system: str, folder: str, parts: dict[str, Any], lsm_probe_command: Any, tmp_path: Path
) -> None:
    base = Path(str(FOLDER)) / system
    rows = [
        {
            "id": f"clip{i}",
            "instruction": "Provide the transcription according to the speech.",
            "audio": str(base / f"clip{i}.wav"),
            "text": f"words {i}",
            "target": "words",
            "task": "librispeech-clean",
        }
        for i in (1, 2, 3)
    ]
    data = tmp_path / "clips.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [word for part, place in parts.items() for word in (f"--{part}", str(base / place))]
    common = ["--ckpt", str(base / folder), *named, "--device", "cpu", "--max-new-tokens", "4"]
    for command in ("attention", "sensitivity", "knockout"):
        out = tmp_path / command
        pool = ("--instructions", "probing") if command == "sensitivity" else ()
        code, _, stderr = lsm_probe_command(command, *common, *pool, "--data", data, "--out", out)
        assert code == 0, stderr
        check = json.loads((out / "result.json").read_text())["self_check"]
        assert check["worst"] <= check["worst_bound"]
    code, _, stderr = lsm_probe_command("timeline", *common, "--data", data, "--out", tmp_path / "timeline")
    assert code == (2 if system == "llasm" else 0), stderr  # states of Whisper's decoder have no times
    task = f"librispeech-clean={data}"
    code, _, stderr = lsm_probe_command("evaluate", *common, "--task", task, "--out", tmp_path / "evaluated")
    assert code == 0, stderr
