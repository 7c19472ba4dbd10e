"""Tasks with true answers for the spoken sentences: what a corpus says, and no word of SmolLM2's own.

    python analyses/open_speech/true_answers.py DATA open/manifest.jsonl true.jsonl

Emotion and sentiment of MELD's utterances, yes or no to BoolQ's questions (the passage stands in the instruction), and
as many transcriptions as samples of emotion. DATA is the folder of `sentences.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from sentences import cleaned

EMOTION = "Which emotion does the speech express? Choose one of anger, disgust, fear, joy, neutral, sadness, surprise."
SENTIMENT = "Is the sentiment of the speech positive, negative or neutral? Answer with one word."
QUESTION = "Answer the question in the speech with yes or no. Use this passage: {passage}"
LONGEST_PASSAGE = 90
"""Words."""

Row = dict[str, str]


def main(data: Path, manifest: Path, out: Path) -> None:
    """Audio paths in the new manifest are relative to its folder."""
    spoken = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    labels, answers = dict(meld(data)), dict(boolq(data))
    emotions, sentiments, questions, others = [], [], [], []
    for row in spoken:
        row["audio"] = str((manifest.parent / row["audio"]).resolve())
        text = row["text"].lower()
        if text in labels:
            emotion, sentiment = labels[text]
            emotions.append(asked(row, "emotion", EMOTION, emotion))
            sentiments.append(asked(row, "sentiment", SENTIMENT, sentiment))
        elif text in answers:
            passage, answer = answers[text]
            questions.append(asked(row, "yes_no", QUESTION.format(passage=passage), answer))
        else:
            others.append(row)
    rng = random.Random(0)
    rows = emotions + sentiments + questions + rng.sample(others, len(emotions))
    rng.shuffle(rows)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(emotions)} emotions, as many sentiments and transcriptions, {len(questions)} questions")


def asked(row: Row, task: str, instruction: str, target: str) -> Row:
    return {**row, "id": f"{row['id']}-{task}", "task": task, "instruction": instruction, "target": target}


def meld(data: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Emotion and sentiment by utterance. Of an utterance that occurs several times, the last counts."""
    with tarfile.open(data / "meld" / "meld_csv.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.endswith("sent_emo.csv") and (file := archive.extractfile(member)):
                for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", errors="replace")):
                    yield cleaned(row["Utterance"]).lower(), (row["Emotion"], row["Sentiment"])


def boolq(data: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Passage and answer by question, as `sentences.py` writes the question."""
    with gzip.open(data / "boolq" / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if len(row["passage"].split()) <= LONGEST_PASSAGE:
                yield cleaned(row["question"]).lower() + "?", (row["passage"], "yes" if row["answer"] else "no")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
