"""Corpora in their own on-disk layouts: a module each, with one function `read(root, problems, wanted)`."""

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
    """A corpus that can be turned into manifests.

    Attributes:
        module: of this package, the one that reads it.
        title: its name as people write it.
        root: what `--root` must be.
        tasks: what its labels can be asked for, the paper's task first. The names are those of the instruction pools.
        spoken: False for a question set, whose text has yet to be spoken; its root is a file.
    """

    module: str
    title: str
    root: str
    tasks: tuple[str, ...]
    spoken: bool = True

    @property
    def all_tasks(self) -> list[str]:
        """`tasks`, and transcription, which any corpus has."""
        return list(dict.fromkeys([*self.tasks, "transcription"]))

    def read(self, root: Path, problems: Problems, splits: Collection[str] | None = None) -> Iterator[Utterance]:
        """Yields the corpus's utterances in its own order; what cannot be used goes into `problems`.

        Sound files are named, not opened.

        Args:
            root: where the corpus lies.
            problems: where bad entries go.
            splits: only these are read; all if none are named.

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
        reader = import_module(f"{__name__}.{self.module}")
        utterances: Iterator[Utterance] = reader.read(root, problems, lambda split: not splits or split in splits)
        return utterances


def question_sets() -> dict[str, Corpus]:
    """Those of `CORPORA` whose text has yet to be spoken."""
    return {name: corpus for name, corpus in CORPORA.items() if not corpus.spoken}


CORPORA = {
    "librispeech": Corpus(
        module="librispeech",
        title="LibriSpeech",
        root="the folder with test-clean/ and the other parts",
        tasks=("transcription",),
    ),
    "gigaspeech": Corpus(
        module="gigaspeech",
        title="GigaSpeech",
        root="the folder with GigaSpeech.json and audio/",
        tasks=("transcription",),
    ),
    "common-voice": Corpus(
        module="common_voice",
        title="Common Voice 4.0 or later",
        root="the folder of a language with clips/ and the tables, for example cv-corpus-4/en",
        tasks=("transcription",),
    ),
    "ljspeech": Corpus(
        module="ljspeech",
        title="LJSpeech 1.1",
        root="the folder with metadata.csv and wavs/",
        tasks=("transcription",),
    ),
    "covost2": Corpus(
        module="covost2",
        title="CoVoST 2",
        root="the folder of Common Voice 4.0 that has clips/, with covost_v2.en_de.tsv or that of another pair",
        tasks=("translation",),
    ),
    "mustc": Corpus(
        module="mustc",
        title="MuST-C",
        root="the folder with en-de/ and the other pairs of languages",
        tasks=("translation",),
    ),
    "meld": Corpus(
        module="meld",
        title="MELD",
        root="the folder with test_sent_emo.csv and output_repeated_splits_test/, whose sound is extracted to .wav",
        tasks=("emotion",),
    ),
    "fluent-speech-commands": Corpus(
        module="fluent_speech_commands",
        title="Fluent Speech Commands",
        root="the folder with data/ and wavs/",
        tasks=("intent",),
    ),
    "snips-lights": Corpus(
        module="snips_lights",
        title="Snips smart lights",
        root="the folder with dataset.json and speech_corpus/, for example smart-lights-en-close-field",
        tasks=("keywords-lights",),
    ),
    "snips-washing": Corpus(
        module="snips_washing",
        title="Snips washing machine (layout not verified)",
        root="the folder with dataset.json and speech_corpus/",
        tasks=("keywords-washing",),
    ),
    "lhotse": Corpus(
        module="lhotse",
        title="A corpus prepared by lhotse",
        root="the folder with its recordings, supervisions or cuts, *.jsonl or *.jsonl.gz",
        tasks=("transcription",),
    ),
    "boolq": Corpus(
        module="boolq",
        title="BoolQ",
        root="the file, for example dev.jsonl",
        tasks=("boolq",),
        spoken=False,
    ),
    "webglm-qa": Corpus(
        module="webglm_qa",
        title="WebGLM-QA",
        root="the file, for example test.jsonl",
        tasks=("webqa",),
        spoken=False,
    ),
    "llama-questions": Corpus(
        module="open_questions",
        title="Llama Questions",
        root="a JSONL file of questions and answers",
        tasks=("question-answering",),
        spoken=False,
    ),
    "web-questions": Corpus(
        module="open_questions",
        title="Web Questions",
        root="a JSONL file of questions and answers",
        tasks=("question-answering",),
        spoken=False,
    ),
}
