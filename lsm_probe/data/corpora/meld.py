"""MELD: `{train,dev,test}_sent_emo.csv`, and a clip `dia<D>_utt<U>.wav` or `.flac` for each row in the part's folder.

The corpus comes as `.mp4`, which libsndfile cannot read: extract the sound beside it once, with ffmpeg. Two of the
clips are known to be unusable: train's dia125_utt3 is damaged and dev's dia110_utt7 is missing (`--on-error skip`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.labels import answer_with
from lsm_probe.data.corpora.tables import Wanted, inside, rows_of_parts
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError

_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
_COLUMNS = ("Utterance", "Emotion", "Dialogue_ID", "Utterance_ID")
# Some releases hold bytes of Windows-1252 taken for Latin-1: its quotation marks became control characters.
_QUOTES = {code: bytes([code]).decode("cp1252", errors="ignore") for code in range(0x80, 0xA0)}


def read_meld(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split for each table, with the emotion of each utterance."""
    tables = {part: f"{part}_sent_emo.csv" for part in _FOLDERS}
    for part, where, row in rows_of_parts(root, tables, _COLUMNS, problems, wanted):
        with problems.catching(where):
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            text = row["Utterance"].translate(_QUOTES)
            clip = _sound(inside(root / _FOLDERS[part], name))
            yield Utterance(name, part, text, audio=clip, answers=answer_with("emotion", row["Emotion"]))


def _sound(clip: Path) -> Path:
    """The clip's sound file; the `.wav` where none is there, which is then reported as missing."""
    wav, flac, mp4 = (clip.with_name(clip.name + ending) for ending in (".wav", ".flac", ".mp4"))
    if wav.exists() or flac.exists() or not mp4.exists():
        return flac if flac.exists() and not wav.exists() else wav
    raise InputError(
        f"{mp4} has no sound file beside it, and MP4 cannot be read; extract all with: "
        f'for f in {clip.parent}/*.mp4; do ffmpeg -i "$f" -ac 1 -ar 16000 "${{f%.mp4}}.wav"; done'
    )
