"""Tiny random models with a real tokenizer, saved and loaded back through the public doors.

The LLM is Llama with grouped-query attention and tied embeddings; its vocabulary is wider than the tokenizer, as in
many real checkpoints, so that the model's `audio_token_id` and the tokenizer's id of `<|audio|>` differ.

Where torch is not installed, tests that need a model are skipped. The rest reads data and results.
"""

from __future__ import annotations

import csv
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

import lsm_probe
from lsm_probe import cli
from lsm_probe.data.sample import Sample
from lsm_probe.runner import picture_files

HAS_TORCH = find_spec("torch") is not None
if HAS_TORCH:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    from lsm_probe.models import LsmProjectorConfig

if TYPE_CHECKING:
    from lsm_probe.models.checkpoint import Checkpoint

Waveform = Callable[..., NDArray[np.float32]]

# A shell starts background jobs with Ctrl-C ignored, and processes inherit that: tests of Ctrl-C would wait in vain.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads over matrices this small only wait for each other: on a busy machine one is 15 times as fast as two.
if HAS_TORCH:
    torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for processes the tests start: the same sums in the same order
# Files that outlast a power failure are not what is tested, and disks take milliseconds for each.
os.fsync = lambda descriptor: None
_SAVE, _SETTLE = Figure.savefig, picture_files._settle


def _save_empty(figure: Figure, to: Any, **how: Any) -> None:
    """Writes an empty picture file: rendering takes most of a command's time. What goes into a page is rendered."""
    if hasattr(to, "write"):
        _SAVE(figure, to, **how)
    else:
        Path(to).write_bytes(b"")


Figure.savefig = _save_empty
picture_files._settle = lambda figure: None

if not HAS_TORCH:
    collect_ignore = ["training", "models", "instruments", "probes/timeline", "test_interop.py"]  # which import it
    MISSING = re.compile("No module named '(torch|transformers|tokenizers|accelerate|peft)['.]")

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
        """Skips a file that imports torch."""
        report = yield
        if report.failed and MISSING.search(str(report.longrepr)):
            report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "Skipped: needs torch")
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call() -> Iterator[None]:
        """Skips a test that imports torch."""
        try:
            return (yield)
        except ModuleNotFoundError as error:
            if MISSING.search(str(error)):
                pytest.skip("needs torch")
            raise

    pytest_fixture_setup = pytest_pyfunc_call  # and the tests of a fixture that does


RATE = 16_000
VOCAB_SIZE = 448
DEFAULT_SYSTEM = "You are a helpful assistant."
SENTENCES = [
    "Continue writing the text.",
    "Translate the speech into German.",
    "Answer the question about the speech in one word.",
    "Write down what the speaker says, and repeat it twice.",
    "The quick brown fox jumps over the lazy dog while the rain falls softly on the old town.",
    "She sells sea shells by the sea shore; nobody knows how many she has sold this year.",
    "My favourite colour is green, because it reminds me of the forest in early spring.",
    "You are a helpful assistant. USER: SPEECH: ASSISTANT: user assistant system",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 380 tokens, trained on a few sentences."""
    pytest.importorskip("torch")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def save_llm(folder: Path, *, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Saves a random Llama (3 layers, 48 wide, 6 heads of which 2 keep keys and values) with its tokenizer."""
    tokenizer = make_tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # Wide enough for attention that prefers some tokens over others.
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Saves a random Whisper (2 encoder layers, 32 wide) with the real feature extractor."""
    pytest.importorskip("torch")
    config = WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def tiny_projector(**changes: int) -> LsmProjectorConfig:
    """A window Q-Former 32 wide."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64} | changes
    return LsmProjectorConfig(**sizes, initializer_range=0.2)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Picture files are rendered, for tests of pictures."""
    monkeypatch.setattr(Figure, "savefig", _SAVE)
    monkeypatch.setattr(picture_files, "_settle", _SETTLE)


PROGRESS = re.compile(r".+: \d+(/\d+)?(, .*)?")  # as a line of a log


@pytest.fixture(scope="session")
def besides_progress() -> Callable[[str], list[str]]:
    """`besides_progress(stderr)`: its lines but for those that say how far the work is."""
    return lambda stderr: [line for line in stderr.splitlines() if line.strip() and not PROGRESS.fullmatch(line)]


# The makers above, for tests that need a variant: `tests` is not a package to import from.


@pytest.fixture(scope="session", name="make_tokenizer")
def make_tokenizer_fixture() -> Callable[..., PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture(scope="session", name="save_llm")
def save_llm_fixture() -> Callable[..., Path]:
    return save_llm


@pytest.fixture(scope="session", name="save_encoder")
def save_encoder_fixture() -> Callable[..., Path]:
    return save_encoder


@pytest.fixture(scope="session", name="tiny_projector")
def tiny_projector_fixture() -> Callable[..., LsmProjectorConfig]:
    return tiny_projector


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved text LLM; do not write into it."""
    return save_llm(tmp_path_factory.mktemp("tiny") / "llm")


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Whisper; do not write into it."""
    return save_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="session")
def tiny_lsm_folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path, tiny_llm_folder: Path) -> Path:
    """A saved LSM with its processor; do not write into it."""
    folder = tmp_path_factory.mktemp("tiny") / "lsm"
    checkpoint = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector())
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def install_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`install_package(group, {name: "other_package:attribute"}, source)` puts a package with entry points on the path:
    one module, gone after the test."""
    packages = []

    def install(group: str, entry_points: dict[str, str], source: str = "", package: str = "other_package") -> None:
        packages.append(package)
        (tmp_path / f"{package}.py").write_text(source)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entry_points.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines))

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for package in packages:
        sys.modules.pop(package, None)


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT (2 layers, 32 wide) that reads letter by letter; do not write into it."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("tiny") / "bert"
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def builtin() -> Callable[[str], Checkpoint]:
    """`builtin("builtin:llm")`: an embedded checkpoint on CPU in float32, the last two kept; do not change it."""
    pytest.importorskip("torch")
    load = lsm_probe.load  # a test may replace it
    return lru_cache(2)(lambda name: load(name, device="cpu", dtype="float32"))


@pytest.fixture
def tiny_lsm(tiny_lsm_folder: Path) -> Checkpoint:
    """A fresh LSM, on CPU in float32: a test may change it."""
    return lsm_probe.load(tiny_lsm_folder, device="cpu", dtype="float32")


@pytest.fixture
def tiny_llm(tiny_llm_folder: Path) -> Checkpoint:
    """A fresh text LLM, on CPU in float32: a test may change it."""
    return lsm_probe.load(tiny_llm_folder, device="cpu", dtype="float32")


@pytest.fixture
def tiny_tokenizer(tiny_llm_folder: Path) -> PreTrainedTokenizerFast:
    """The tiny models' tokenizer, loaded back from its folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_llm_folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.fixture(scope="session")
def slow_interval() -> Callable[..., tuple[float, float]]:
    """The 95 % interval of a statistic, written out with loops and a search for the transformed t.

    Called as `slow_interval(statistic, clusters)`; `statistic` takes the numbers of the samples that are kept.
    """

    def interval(statistic: Callable[[list[int]], float], clusters: Sequence[int]) -> tuple[float, float]:
        names = sorted(set(clusters))
        n = len(names)
        point = float(statistic(list(range(len(clusters)))))
        pseudo_values = []
        for name in names:
            kept = [i for i, cluster in enumerate(clusters) if cluster != name]
            pseudo_values.append(n * point - (n - 1) * float(statistic(kept)))
        mean = sum(pseudo_values) / n
        second, third = (sum((value - mean) ** power for value in pseudo_values) / n for power in (2, 3))
        error = (second / (n - 1)) ** 0.5
        skew = third / second**1.5 * (n * (n - 1)) ** 0.5 / (n - 2) / n**0.5

        def transformed(t: float) -> float:
            return float(t + skew / 3 * t**2 + skew**2 / 27 * t**3 + skew / 6)

        t = float(stats.t.ppf(0.975, n - 1))
        upper, lower = (brentq(lambda x, end=end: transformed(x) - end, -1e4, 1e4, xtol=1e-13) for end in (t, -t))
        return point - max(upper, t) * error, point - min(lower, -t) * error

    return interval


@pytest.fixture(scope="session")
def waveform() -> Waveform:
    """`waveform(seconds, seed=0)`: pink-ish noise and three tones that come and go, float32 at 16 kHz."""

    @cache
    def made(seconds: float, seed: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        samples = round(seconds * RATE)
        time = np.arange(samples) / RATE
        spectrum = np.fft.rfft(rng.normal(size=samples))
        noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum))), samples)
        audio = 0.05 * noise / (np.abs(noise).max() + 1e-12)
        for frequency, rate, phase in zip(
            rng.uniform(120, 3000, 3), rng.uniform(1, 4, 3), rng.uniform(0, 6, 3), strict=True
        ):
            audio += 0.1 * np.sin(2 * np.pi * frequency * time) * (1 + np.sin(2 * np.pi * rate * time + phase)) / 2
        return audio.astype(np.float32)

    return lambda seconds, seed=0: made(seconds, seed).copy()


@pytest.fixture(scope="session")
def clip(waveform: Waveform) -> Callable[..., Path]:
    """`clip(path, seconds=0.5)` writes a sound file; format and folders follow from the path."""

    def make(path: Path, seconds: float = 0.5) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {".opus": "OGG"}.get(path.suffix)
        soundfile.write(path, waveform(seconds), RATE, format=form, subtype="OPUS" if form else None)
        return path

    return make


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """`write(path, *lines)`: a text file, with its folders."""

    def make(path: Path, *lines: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return make


@pytest.fixture
def lsm_probe_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int | str, str, str]]:
    """`lsm_probe_command(*arguments)` runs `lsm-probe` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["lsm-probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as info:
            cli.main()
        captured = capsys.readouterr()
        return info.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def parsed() -> Callable[[list[str]], dict[str, Any]]:
    """`parsed(arguments)`: the parameters of a command line of this version, which it does not run.

    A line that this version does not take raises click's usage error.
    """

    program: Any = typer.main.get_command(cli.app)

    def parse(arguments: list[str]) -> dict[str, Any]:
        command = program
        context = command.make_context("lsm-probe", list(arguments))
        while hasattr(command, "resolve_command"):
            name, command, arguments = command.resolve_command(context, arguments)
            context = command.make_context(name, list(arguments), parent=context)
        return dict(context.params)

    return parse


@pytest.fixture(scope="session")
def small_garbage() -> Iterator[None]:
    """Every training run collects garbage: half a second each, were it to look through all that is imported."""
    gc.collect()  # what is frozen stays: the real models of earlier tests would, gigabytes of them
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def mmlu_folder(tmp_path: Path) -> Path:
    """MMLU of three items in three groups: five examples and seven questions each, with a header line."""
    rng = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()
    folder = tmp_path / "mmlu"
    for item in ("anatomy", "sociology", "world_religions"):
        for split, lines in (("dev", 5), ("test", 7)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            with (folder / split / f"{item}_{split}.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
                for _ in range(lines):
                    question = " ".join(rng.choice(words, 8)) + ",\nor which?"
                    table.writerow([question, *rng.choice(words, 4), int(rng.integers(4))])
    return folder


TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "rain falls softly on the old town",
    "she sells sea shells by the sea shore and nobody knows how many she has sold this year",
    "green",
    "the forest in early spring reminds me of my favourite colour",
    "nobody knows",
    "the lazy dog sells shells",
    "he has sold many this year while rain falls on the sea shore of the old town",
]
INSTRUCTIONS = ["Translate the speech into German.", "Write down what the speaker says, and repeat it twice."]


@pytest.fixture(scope="session")
def samples(tmp_path_factory, waveform):
    """Eight utterances of 0.3 to 5 s, under two instructions in turn."""
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for i, text in enumerate(TEXTS):
        path = folder / f"{i}.wav"
        soundfile.write(path, waveform(np.linspace(0.3, 5, len(TEXTS))[i], seed=i), 16_000)
        made.append(
            Sample(id=f"s{i}", instruction=INSTRUCTIONS[i % 2], audio=path, text=text, target=text[:20], task="test")
        )
    return made
