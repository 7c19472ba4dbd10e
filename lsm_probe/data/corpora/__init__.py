"""Corpora in their own on-disk layouts: a function `read_NAME(root, problems, wanted)` for each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be turned into manifests."""

    name: str  # of the function that reads it, and in `config.yaml`
    title: str  # its name as people write it
    root: str  # what `--root` must be
    # Tasks that its labels allow, the paper's task first. The names are those of the instruction pools.
    tasks: tuple[str, ...] = ("transcription",)
    spoken: bool = True  # False for a question set, which has text without speech; its root is a file
    module: str | None = None  # module in this package with the function; by default of the same name

    @property
    def all_tasks(self) -> list[str]:
        """`tasks`, and transcription, which every corpus allows."""
        return list(dict.fromkeys([*self.tasks, "transcription"]))

    def read(self, root: Path, problems: Problems, splits: Collection[str] | None = None) -> Iterator[Utterance]:
        """Yields the corpus's utterances in its own order; unusable entries are recorded in `problems`.

        Only these `splits` are read, or all if none are given. Sound files are not opened.

        Raises:
            InputError: `root` does not hold the corpus.
        """
        try:
            root.stat()
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "does not exist" if missing else f"cannot be read ({getattr(error, 'strerror', error)})"
            raise InputError(f"--root {root} {reason}; give {self.root}") from None
        if root.is_dir() != self.spoken:
            raise InputError(f"--root {root} is a {'file' if self.spoken else 'folder'}; give {self.root}")
        read = getattr(import_module(f"{__name__}.{self.module or self.name}"), f"read_{self.name}")
        utterances: Iterator[Utterance] = read(root, problems, lambda split: not splits or split in splits)
        return utterances


def question_sets() -> dict[str, Corpus]:
    """Those of `CORPORA` that have text without speech."""
    return {name: corpus for name, corpus in CORPORA.items() if not corpus.spoken}


def _question_set(name: str, title: str, task: str, root: str = "a JSONL file of questions and answers") -> Corpus:
    return Corpus(name, title, root, (task,), spoken=False, module="questions")


CORPORA = {
    "librispeech": Corpus("librispeech", "LibriSpeech", "the folder with test-clean/ and the other parts"),
    "gigaspeech": Corpus("gigaspeech", "GigaSpeech", "the folder with GigaSpeech.json and audio/"),
    "common-voice": Corpus(
        "common_voice",
        "Common Voice 4.0 or later",
        "the folder of a language with clips/ and the tables, for example cv-corpus-4/en",
    ),
    "ljspeech": Corpus("ljspeech", "LJSpeech 1.1", "the folder with metadata.csv and wavs/"),
    "covost2": Corpus(
        "covost2",
        "CoVoST 2",
        "the folder of Common Voice 4.0 that has clips/, with covost_v2.en_de.tsv or that of another pair",
        ("translation",),
    ),
    "mustc": Corpus("mustc", "MuST-C", "the folder with en-de/ and the other pairs of languages", ("translation",)),
    "meld": Corpus(
        "meld",
        "MELD",
        "the folder with test_sent_emo.csv and output_repeated_splits_test/, whose sound is extracted to .wav",
        ("emotion",),
    ),
    "fluent-speech-commands": Corpus(
        "fluent_speech_commands", "Fluent Speech Commands", "the folder with data/ and wavs/", ("intent",)
    ),
    "snips-lights": Corpus(
        "snips_lights",
        "Snips smart lights",
        "the folder with dataset.json and speech_corpus/, for example smart-lights-en-close-field",
        ("keywords-lights",),
        module="snips",
    ),
    "snips-washing": Corpus(
        "snips_washing",
        "Snips washing machine (layout not verified)",
        "the folder with dataset.json and speech_corpus/",
        ("keywords-washing",),
        module="snips",
    ),
    "lhotse": Corpus(
        "lhotse",
        "a corpus prepared by lhotse",
        "the folder with its recordings, supervisions or cuts, *.jsonl or *.jsonl.gz",
    ),
    "boolq": _question_set("boolq", "BoolQ", "boolq", "the file, for example dev.jsonl"),
    "webglm-qa": _question_set("webglm_qa", "WebGLM-QA", "webqa", "the file, for example test.jsonl"),
    "llama-questions": _question_set("open_questions", "Llama Questions", "question-answering"),
    "web-questions": _question_set("open_questions", "Web Questions", "question-answering"),
}
