"""Open English sentences to be spoken, from text that is free to use.

    python analyses/open_speech/sentences.py DATA train.jsonl held_out.jsonl

DATA holds `ljspeech/metadata.csv.gz` (LJSpeech's transcripts), `meld/meld_csv.tar.gz` (MELD's utterances),
`boolq/dev.jsonl.gz` (BoolQ's questions and passages) and `mmlu/mmlu_csv.tar.gz` (MMLU's questions). Chapters LJ001 and
LJ002 of LJSpeech are left out, because their recordings are the natural test set; sentences of LJ003 are held out.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

TAKEN = {"ljspeech": 12000, "meld": 6000, "question": 2800, "passage": 4800, "mmlu": 10000}
"""Sentences of each source in the training set."""
NATURAL, HELD_OUT = ("LJ001", "LJ002"), "LJ003"

Sentence = tuple[str, str]
"""Its id and its text."""


def main(data: Path, train: Path, held_out: Path) -> None:
    rng = random.Random(0)
    lj = list(ljspeech(data / "ljspeech" / "metadata.csv.gz"))
    questions, passages = boolq(data / "boolq" / "dev.jsonl.gz")
    sources = {
        "ljspeech": [(name, text) for name, text in lj if not name.startswith((*NATURAL, HELD_OUT))],
        "meld": numbered("meld", meld(data / "meld" / "meld_csv.tar.gz")),
        "question": numbered("question", questions),
        "passage": numbered("passage", passages),
        "mmlu": numbered("mmlu", mmlu(data / "mmlu" / "mmlu_csv.tar.gz")),
    }
    chosen = [sentence for name, found in sources.items() for sentence in rng.sample(found, TAKEN[name])]
    rng.shuffle(chosen)
    held = [(name, text) for name, text in lj if name.startswith(HELD_OUT)]
    for path, sentences in ((train, chosen), (held_out, rng.sample(held, 200))):
        lines = [json.dumps({"id": name, "text": text}) for name, text in sentences]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def ljspeech(path: Path) -> Iterator[Sentence]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            name, *_, normalised = line.rstrip("\n").split("|")
            if is_usable(text := cleaned(normalised), 2, 30):
                yield name, text


def meld(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.name.endswith("sent_emo.csv") and (file := archive.extractfile(member)):
                for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", errors="replace")):
                    if is_usable(text := cleaned(row["Utterance"]), 4, 25):
                        yield text


def boolq(path: Path) -> tuple[list[str], list[str]]:
    """Questions, and sentences of the passages."""
    questions, passages = [], []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if is_usable(question := cleaned(row["question"]).capitalize() + "?", 4, 20):
                questions.append(question)
            passages += [text for text in split(row["passage"]) if is_usable(text, 6, 24) and text.endswith(".")]
    return questions, [text for text in passages if '"' not in text]


def mmlu(path: Path) -> Iterator[str]:
    """Sentences of the questions, without the answers."""
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.name.endswith(".csv") and (file := archive.extractfile(member)):
                for question, *_ in csv.reader(io.TextIOWrapper(file, encoding="utf-8")):
                    yield from (text for text in split(question) if is_usable(text, 5, 25) and text[-1] in ".?")


def split(passage: str) -> list[str]:
    """Sentences, without remarks in parentheses."""
    return [re.sub(r" ?\([^)]*\)", "", text) for text in re.split(r"(?<=[.!?]) (?=[A-Z])", cleaned(passage))]


def numbered(source: str, texts: Iterator[str] | list[str]) -> list[Sentence]:
    """Without repetitions."""
    once = {text.lower(): text for text in texts}
    return [(f"{source}-{i}", text) for i, text in enumerate(once.values())]


def cleaned(text: str) -> str:
    plain = text.translate(str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2014": "-"}))
    return " ".join(plain.split())


def is_usable(text: str, least: int, most: int) -> bool:
    """Whether the text has so many words, and letters and common punctuation alone: no digits, which have readings."""
    return least <= len(text.split()) <= most and not re.search(r"[^A-Za-z ,.;:?!'\"()-]", text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
