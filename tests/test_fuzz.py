"""Generated input: whatever is given is read as it stands or refused in one line, never a traceback.

Examples are the same in every run; 540 in all.
"""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsm_probe.data.audio import check_audio_file, read_audio_file
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.errors import InputError
from lsm_probe.files import check_can_write, replacing
from lsm_probe.runner.labels import checkpoint_labels
from lsm_probe.runner.output_folder import folder_name
from lsm_probe.training.config import Stage, TrainConfig, read_config


def generated(examples: int):
    # The temporary folder may be shared: each example writes its own file anew.
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=shared)


def refusal(info) -> str:
    """The message of an InputError, which is one line."""
    message = str(info)
    assert message
    assert len(message.splitlines()) == 1, message
    return message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
KEYS = ["id", "instruction", "text", "target", "alternatives", "start", "duration", "task", "language", "context", "x"]
TEXTS = ("id", "instruction", "text", "target", "task", "language", "context")


@generated(150)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=3), min_size=1, max_size=3),
    flaw=st.sampled_from(["", "cut", "bytes", "repeated key"]),
)
def test_manifests(tmp_path: Path, rows, flaw) -> None:
    rows = [{"id": f"s{i}", "instruction": "Say it.", "text": "rain"} | row for i, row in enumerate(rows)]
    lines = [json.dumps(row) for row in rows]
    content = "\n".join(lines).encode()
    if flaw == "cut":
        content = content[:-3]
    elif flaw == "bytes":
        content = content.replace(b"rain", b"r\xff\x00n")
    elif flaw == "repeated key":
        content = content[:-1] + b', "id": "again"}'
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            samples = read_manifest(path)
        except InputError as error:
            refusal(error)
            return
    assert flaw in ("", "bytes")
    assert len(samples) == len(rows)
    for sample, row in zip(samples, rows, strict=True):
        for key in TEXTS:
            if row.get(key) is not None:
                assert getattr(sample, key) == row[key], key
    if any("x" in row for row in rows):
        assert any("unknown keys" in str(warning.message) for warning in warned)


def encoded(kind: str, subtype: str | None) -> bytes:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(8_000) / 7)
    soundfile.write(file, wave, 16_000, format=kind, subtype=subtype)
    return file.getvalue()


SOUNDS = {
    kind: encoded(kind, subtype)
    for kind, subtype in {
        "WAV": "PCM_16",
        "WAVEX": "FLOAT",
        "RF64": "PCM_16",
        "W64": "PCM_16",
        "AIFF": "PCM_24",
        "AU": "PCM_16",
        "CAF": "PCM_16",
        "NIST": "PCM_16",
        "FLAC": None,
        "OGG": "VORBIS",
        "MP3": None,
    }.items()
}


@generated(150)
@given(
    kind=st.sampled_from(list(SOUNDS)),
    changes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4),
    end=st.sampled_from(["", "cut", "junk", "zeros", "twice"]),
)
def test_sound_files(tmp_path: Path, kind, changes, end) -> None:
    content = bytearray(SOUNDS[kind])
    for place, value in changes:
        content[place] = value
    tail = {"": b"", "junk": b"\x07" * 999, "zeros": bytes(999), "twice": SOUNDS[kind]}
    content = content[: len(content) // 2] if end == "cut" else content + tail[end]
    path = tmp_path / "sound"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            audio = read_audio_file(path)
        except InputError as error:
            refusal(error)
            return
        seconds = check_audio_file(path)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert len(audio) == pytest.approx(16_000 * seconds, abs=2)
    if not changes:
        assert end != "cut" or warned  # FLAC and MP3 can be read before a cut
        assert len(audio) >= (16_000 if end == "twice" else 8_000) or warned


SETTINGS = sorted(
    {*TrainConfig.model_fields, *Stage.model_fields, "machine.workers", "model.connector.hidden_size", "a.b"}
)
YAML_TEXTS = st.text(max_size=10) | st.sampled_from(
    ["on", "off", "1e-3", "010", "[a, b]", "{a: 1}", "nan", "-1", "null"]
)


@generated(100)
@given(overrides=st.lists(st.tuples(st.sampled_from(SETTINGS), YAML_TEXTS), min_size=1, max_size=3))
def test_configs(tmp_path: Path, overrides) -> None:
    given = [f"{key}={value}" for key, value in overrides]
    try:
        config = read_config("mini/commands", given)
    except InputError as error:
        refusal(error)
        return
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    assert read_config(path) == config


@generated(40)
@given(content=st.text(max_size=40) | st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=3).map(json.dumps))
def test_instruction_pools(tmp_path: Path, content) -> None:
    path = tmp_path / "pool.yaml"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(InputError) as info:
        read_pool(str(path))
    refusal(info.value)


NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["_base", "$x", "a/model", "模型甲", "模型乙", "..", "#000000"]
)


@generated(50)
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_names_of_checkpoints(tmp_path: Path, names) -> None:
    folder = folder_name(*names)
    assert folder == Path(folder).name
    assert folder not in ("", ".", "..")
    (tmp_path / folder).mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = checkpoint_labels(names)
        assert len(set(labels)) == len(names)
        figure = Figure(figsize=(2, 2))
        axes = figure.subplots()
        for label in labels:
            axes.plot([0, 1], label=label)
        drawn = [text.get_text() for text in axes.legend().get_texts()]
        FigureCanvasAgg(figure).draw()
    assert drawn == labels


@generated(50)
@given(
    parts=st.lists(
        st.text(min_size=1, max_size=6) | st.sampled_from(["..", "~", "file", "x" * 300, "é", "-"]),
        min_size=1,
        max_size=3,
    )
)
def test_paths_that_are_written_to(tmp_path: Path, parts) -> None:
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    (root / "file").touch()
    path = root / "a" / "b" / Path(*(part.replace("/", "|").replace("\0", "0") for part in parts))
    try:
        check_can_write("--out", path)
    except InputError as error:
        refusal(error)
        return
    with replacing(path) as temporary:
        temporary.write_text("written")
    assert path.read_text() == "written"
    path.unlink()
