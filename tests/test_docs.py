"""README and docs hold: commands run, options exist, links lead somewhere, Python runs, the site builds.

Every `lsm-probe` command in a bash block is run in order, in a folder where the names that the pages use stand for tiny
models and data. What takes long or needs what is not at hand is run with `--dry-run` or `--help` (see `instead`).
"""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import typer
from nbclient import NotebookClient

import lsm_probe
from lsm_probe import assets
from lsm_probe.cli import app
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.probes.timeline.words import Word

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]

LSMS = ("my-lsm", "path/to/lsm", "before", "after", "runs/vanilla/model", "runs/four-tasks/model")
LLMS = ("my-llm", "base-llm")
MANIFESTS = ("clips.jsonl", "spoken.jsonl", "answers.jsonl", "texts.jsonl", "place.jsonl", "mood.jsonl")
FOLDERS = ("spoken/manifest.jsonl", "clips/manifest.jsonl", "commands/test.place.jsonl")
NOT_AT_HAND = (
    "biased",
    "builtin:vanilla_asr",
    "/data/",
    "openai/",
    "releases/",
    "vllm",
    "http://",
    "spread",
    "a-70b-lsm",
    "dev.jsonl",
)
"""What names a corpus, a model of the hub, a server, GPUs, or is made for the real embedded models."""
EARLIER = ("runs/elsewhere/", "runs/evaluated/", "runs/arms/", "runs/tutorial")
"""Results of other runs."""

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks in a language."""
    return [found[3] for found in _BLOCK.finditer(page.read_text()) if found[2] == language]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text())


def arguments(line: str) -> Iterator[list[str]]:
    """Those of each lsm-probe in a line of shell: by name, in a virtual environment, or as `-m lsm_probe`."""
    for part in re.split(r"&&|\|\||[;|]", line):
        words = shlex.split(part, comments=True)
        for i, word in enumerate(words):
            if (i == 0 and word.rpartition("/")[2] == "lsm-probe") or (word == "lsm_probe" and words[i - 1] == "-m"):
                yield words[i + 1 :]
                break


def commands(page: Path) -> list[list[str]]:
    """All lsm-probe commands of a page's bash blocks in order, each once."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [words for line in lines if not line.lstrip().startswith("#") for words in arguments(line)]
    return [words for i, words in enumerate(found) if words not in found[:i]]


@cache
def program() -> typer.core.TyperGroup:
    return typer.main.get_command(app)


def find_command(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, and what is left of them."""
    command = program()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def instead(words: list[str]) -> list[str] | None:
    """What stands for a command that cannot be run as it is; None if it can be."""
    if words[0] == "train":
        return [*words, "--dry-run"] if "--dry-run" not in words else None
    speaks = words[0] == "data" and words[1] != "validate"
    if speaks or words[0] == "demo" or any(part in word for word in words for part in (*NOT_AT_HAND, *EARLIER)):
        return [*words[: 2 if speaks else 1], "--help"]
    if "--layers" in words:
        return ["0-1" if words[i - 1] == "--layers" else word for i, word in enumerate(words)]
    return None


@pytest.fixture(scope="session")
def quick_lsm_folder(tmp_path_factory, tiny_encoder_folder, tiny_llm_folder, tiny_projector):
    """An LSM whose encoder reads the clip alone: the 30 s of the others would take a quarter of the time."""
    parts = tiny_encoder_folder, tiny_llm_folder
    model = lsm_probe.build_lsm(*parts, projector=tiny_projector(), encoder_context="clip")
    folder = tmp_path_factory.mktemp("quick") / "lsm"
    model.save(folder)
    return folder


@pytest.fixture
def stand_ins(tmp_path, monkeypatch, quick_lsm_folder, tiny_llm_folder, tiny_encoder_folder, clip, mmlu_folder):
    """A folder where the names that the pages use stand for something small."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr(assets, "speech_encoder", lambda: tiny_encoder_folder)
    monkeypatch.setattr(assets, "language_model", lambda: tiny_llm_folder)
    # Notebooks and long responses take most of the time, and have tests of their own.
    monkeypatch.setattr(NotebookClient, "execute", lambda client: None)
    generate = Checkpoint.generate
    monkeypatch.setattr(
        Checkpoint, "generate", lambda self, embedded, **how: generate(self, embedded, **how | {"max_new_tokens": 8})
    )
    monkeypatch.setattr("lsm_probe.probes.timeline.measure.word_times", lambda waveform, text: [Word(text, 0.1, 0.4)])
    for name, folder in [*((name, quick_lsm_folder) for name in LSMS), *((name, tiny_llm_folder) for name in LLMS)]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(folder)
    Path("mmlu").symlink_to(mmlu_folder)
    tasks = lsm_probe.read_pool("probing").tasks
    rows = [
        {
            "id": f"clip-{i}",
            "instruction": tasks[i % len(tasks)].instructions[0],
            "task": tasks[i % len(tasks)].task,
            "audio": str(clip(home / f"{i}.wav", 0.5 + i / 16)),
            "text": f"The fox number {i} jumps over the dog.",
            "target": "happy",
        }
        for i in range(16)
    ]
    for name in (*MANIFESTS, *FOLDERS):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        target = {"target": "kitchen"} if name == "place.jsonl" else {}
        Path(name).write_text("".join(json.dumps(row | target) + "\n" for row in rows))
    Path("my-config.yaml").write_text("base: mini/vanilla_asr\n")
    return home


def write_files(page: Path) -> None:
    """YAML blocks that begin with `# NAME.yaml` are files that the page's commands read."""
    for block in blocks(page, "yaml"):
        if named := re.match(r"# ([\w-]+\.yaml)", block):
            Path(named[1]).write_text(block)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_parses(name):
    for words in commands(ROOT / name):
        command, rest = find_command(words)
        try:
            command.make_context(words[0], list(rest))
        except typer.Exit:  # --help
            pass
        except Exception as error:
            message = getattr(error, "format_message", lambda error=error: str(error))()
            pytest.fail(f"{name}: lsm-probe {shlex.join(words)}: {message}")


@pytest.mark.parametrize("name", [name for name in NAMES if commands(ROOT / name)])
def test_every_command_runs(name, stand_ins, lsm_probe_command):
    write_files(ROOT / name)
    for words in commands(ROOT / name):
        code, _, stderr = lsm_probe_command(*(instead(words) or words))
        assert code == 0, f"{name}: lsm-probe {shlex.join(words)}: exit code {code}: {stderr[-500:]}"


@pytest.mark.parametrize("name", NAMES)
def test_options_named_in_prose_exist(name):
    for code in _CODE.findall(prose(ROOT / name)):
        for words in arguments(code.replace("[", " ").replace("]", " ").replace("...", "")):
            if not words or any(word.isupper() for word in words[:2]):  # `lsm-probe data NAME`
                continue
            command, rest = find_command(words)
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            unknown = {word for word in rest if word.startswith("--")} - known
            assert not unknown, f"{name}: `{code}`: unknown {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name):
    page = ROOT / name
    for target in _LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name}: {target} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(linked), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{name}: {target}: no such heading"


def resolve(dotted: str) -> object:
    """What a dotted name below lsm_probe stands for: a module, or an attribute of one."""
    found: object = lsm_probe
    for done, part in enumerate(names := dotted.split(".")[1:]):
        if not hasattr(found, part):
            import_module(".".join(["lsm_probe", *names[: done + 1]]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_names_in_code_and_prose_exist(name):
    page = ROOT / name
    dotted = {found for code in _CODE.findall(prose(page)) for found in re.findall(r"\blsm_probe(?:\.\w+)+", code)}
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lsm_probe"):
                dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
    for found in dotted:
        try:
            resolve(found)
        except (AttributeError, ImportError):
            pytest.fail(f"{name}: there is no {found}")


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "python")])
def test_python_blocks_run(name, stand_ins):
    for block in blocks(ROOT / name, "python"):
        # The adapters of the trained ones fit the real embedded models alone.
        block = re.sub("builtin:(vanilla_asr|self_powered)", "builtin:untrained", block)
        exec(compile(block, name, "exec"), {"lsm_probe": lsm_probe})


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ROOT / "mkdocs.yml", "-d", folder]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_needs_no_network_and_can_be_searched(site):
    fetched = re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="([^"]*)"', (site / "index.html").read_text())
    assert fetched
    assert not [url for url in fetched if "//" in url]
    assert "probes/sensitivity.html" in (site / "search/search_index.json").read_text()


def test_the_site_has_every_public_name_and_every_command(site):
    python, commands = (site / "api.html").read_text(), (site / "cli.html").read_text()
    missing = [name for name in lsm_probe.__all__ if name[0] != "_" and f'id="lsm_probe.{name}"' not in python]
    missing += [name for name in program().commands if f'id="lsm-probe-{name}"' not in commands]
    assert not missing
