"""Checksums: a saved checkpoint is whole or not there, and no damage to it goes unseen."""

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lsm_probe
from lsm_probe import checksums
from lsm_probe.checksums import CHECKSUMS, is_complete, read_checksums, verify, write_checksums
from lsm_probe.errors import InputError
from lsm_probe.models import loading
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.lookup import load_prompter

FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "prompt_template.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def saved_once(tiny_lsm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "lsm"
    lsm_probe.load(tiny_lsm_folder, device="cpu").save(folder)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of a saved LSM, to damage."""
    return shutil.copytree(saved_once, tmp_path / "lsm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of plain files with checksums, some below it."""
    folder = tmp_path / "folder"
    for name in ("config.json", "b/weights.bin", "b/c/deep.txt", ".lock", "README.md", "empty"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if name == "empty" else f"this is {name}")
    write_checksums(folder)
    return folder


def refusal(action: Callable[[Path], Any], folder: Path, *names: str) -> None:
    with pytest.raises(InputError) as error:
        action(folder)
    line = str(error.value)
    for name in names:
        assert name in line, line


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def list_also(folder: Path, name: str, content: bytes) -> None:
    """Adds a file to `checksums.json`, as one who forges a checkpoint would."""
    path = folder / CHECKSUMS
    written = json.loads(path.read_text())
    written["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(written))


class TestDamageToACheckpoint:
    def test_these_are_all_its_files(self, saved: Path) -> None:
        assert sorted(path.name for path in saved.iterdir()) == sorted([*FILES, CHECKSUMS])
        assert list(read_checksums(saved)) == FILES
        assert lsm_probe.load(saved).identity.checksums == "verified"

    @pytest.mark.parametrize("name", FILES)
    def test_truncated_by_one_byte(self, saved: Path, name: str) -> None:
        (saved / name).write_bytes((saved / name).read_bytes()[:-1])
        refusal(lsm_probe.load, saved, str(saved / name), "bytes instead of")

    @pytest.mark.parametrize("at", [0, 0.5, 1])
    @pytest.mark.parametrize("name", FILES)
    def test_one_byte_flipped(self, saved: Path, name: str, at: float) -> None:
        flip(saved / name, round(at * ((saved / name).stat().st_size - 1)))
        refusal(lsm_probe.load, saved, str(saved / name), "sha256")

    @pytest.mark.parametrize("name", FILES)
    def test_deleted(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        refusal(lsm_probe.load, saved, str(saved / name), "missing")

    @pytest.mark.parametrize(
        "name",
        [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "pytorch_model.bin",
            "adapter_config.json",
            "added_tokens.json",
            "additional_chat_templates/other.jinja",
        ],
    )
    def test_a_foreign_file(self, saved: Path, name: str) -> None:
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("{}")
        refusal(lsm_probe.load, saved, str(saved / name), "not listed")

    @pytest.mark.parametrize("name", ["README.md", ".gitattributes", ".cache/huggingface/download/x.metadata"])
    def test_what_people_and_tools_add_is_no_matter(self, saved: Path, name: str) -> None:
        (saved / name).parent.mkdir(parents=True, exist_ok=True)
        (saved / name).write_text("own words")
        assert verify(saved)

    def test_nothing_is_read_before(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def read(*_: Any, **__: Any) -> None:
            raise AssertionError("read before it was verified")

        monkeypatch.setattr(loading, "pretrained", read)
        flip(saved / "model.safetensors", -1)
        refusal(lsm_probe.load, saved, "model.safetensors")
        refusal(load_prompter, saved, "model.safetensors")

    def test_sizes_are_compared_before_anything_is_hashed(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checksums, "file_sha256", lambda path: pytest.fail(f"hashed {path}"))
        (saved / "tokenizer_config.json").write_bytes(b"")
        refusal(verify, saved, "tokenizer_config.json")

    def test_a_text_llm_too(self, tiny_llm: Checkpoint, tmp_path: Path) -> None:
        tiny_llm.save(tmp_path)
        assert lsm_probe.load(tmp_path).identity.checksums == "verified"
        assert load_prompter(tmp_path).identity == lsm_probe.load(tmp_path).identity
        flip(tmp_path / "tokenizer.json", 100)
        refusal(lsm_probe.load, tmp_path, "tokenizer.json")
        refusal(load_prompter, tmp_path, "tokenizer.json")


class TestIdentity:
    def test_weights_of_a_verified_folder_are_hashed_once(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lsm_probe.models.identification.sha256", lambda path: pytest.fail(f"hashed {path} again"))
        expected = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
        identity = lsm_probe.load(saved).identity.to_dict()
        del identity["prompt_sha256"]
        assert identity == {
            "model_type": "lsm",
            "checksums": "verified",
            "weights_sha256": {"model.safetensors": expected},
        }

    def test_a_folder_without_checksums_loads_unverified(self, saved: Path) -> None:
        before = lsm_probe.load(saved)
        (saved / CHECKSUMS).unlink()
        assert not is_complete(saved)
        assert not verify(saved)
        after = lsm_probe.load(saved)
        assert after.identity == replace(before.identity, checksums="unverified")
        assert all(torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))

    def test_what_a_pin_vouches_for_is_neither(self, saved: Path) -> None:
        (saved / CHECKSUMS).unlink()
        (saved / "asset.json").write_text("{}")
        assert lsm_probe.load(saved).identity.checksums is None


class TestWriting:
    def test_sizes_and_sha256_of_all_files_in_order(self, folder: Path) -> None:
        written = json.loads((folder / CHECKSUMS).read_text())
        assert list(written["files"]) == ["b/c/deep.txt", "b/weights.bin", "config.json", "empty"]
        for name, entry in written["files"].items():
            content = (folder / name).read_bytes()
            assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert verify(folder)
        assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [".lock"]

    def test_again_gives_the_same(self, folder: Path) -> None:
        before = (folder / CHECKSUMS).read_bytes()
        write_checksums(folder)
        assert (folder / CHECKSUMS).read_bytes() == before

    def test_everything_is_on_the_disk_before(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / CHECKSUMS).unlink()
        synced: list[str] = []

        def sync(path: Path) -> None:
            # The folder once more at the very end, for the name of checksums.json.
            assert is_complete(folder) == (len(synced) == 8)
            synced.append(os.path.relpath(path, folder))

        monkeypatch.setattr(checksums, "sync", sync)
        write_checksums(folder)
        assert synced[:4] == ["b/c/deep.txt", "b/weights.bin", "config.json", "empty"]
        assert set(synced[4:7]) == {".", "b", "b/c"}
        assert Path(synced[7]).suffix == ".json"  # checksums.json under its temporary name
        assert synced[8:] == ["."]

    def test_an_error_leaves_no_checksums(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / CHECKSUMS).unlink()

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="No space left"):
            write_checksums(folder)
        assert not is_complete(folder)
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "README.md", "b", "config.json", "empty"]

    def test_links_are_refused(self, folder: Path) -> None:
        (folder / "link").symlink_to(folder / "config.json")
        refusal(write_checksums, folder, "link", "not a regular file")


class TestEscapes:
    """A checkpoint whose files name paths outside its folder."""

    @pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "b/../../outside", "b/.."])
    def test_a_path_out_of_the_folder(self, folder: Path, name: str) -> None:
        (folder.parent / "outside").write_bytes(b"content")
        list_also(folder, name, b"content")
        refusal(verify, folder, CHECKSUMS, name, "outside the folder")

    def test_a_linked_file(self, folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.write_bytes((folder / "config.json").read_bytes())
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(outside)
        refusal(verify, folder, "config.json", "link out of the folder")

    def test_a_linked_folder(self, folder: Path) -> None:
        (folder / "b").rename(folder.parent / "outside")
        (folder / "b").symlink_to(folder.parent / "outside")
        refusal(verify, folder, str(folder / "b"), "not listed")
        list_also(folder, "b", b"")
        refusal(verify, folder, str(folder / "b"), "link out of the folder")

    def test_a_link_within_the_folder_is_read(self, folder: Path) -> None:
        (folder / "b/weights.bin").rename(folder / "b/other.bin")
        (folder / "b/weights.bin").symlink_to("other.bin")
        list_also(folder, "b/other.bin", (folder / "b/other.bin").read_bytes())
        assert verify(folder)

    @pytest.mark.parametrize("target", ["nowhere", "config.json"])
    def test_a_link_to_nothing_or_to_itself(self, folder: Path, target: str) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(target)
        refusal(verify, folder, "config.json", "replace it with the file itself")

    def test_a_pipe_is_never_opened(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        refusal(verify, folder, "config.json", "not a regular file")
        (folder / CHECKSUMS).unlink()
        refusal(write_checksums, folder, "config.json", "not a regular file")

    def test_checksums_that_are_a_link(self, folder: Path) -> None:
        (folder / CHECKSUMS).rename(folder.parent / "outside")
        (folder / CHECKSUMS).symlink_to(folder.parent / "outside")
        refusal(verify, folder, CHECKSUMS, "link out of the folder")
        # The folder was complete once: it does not become unverified by that.
        (folder.parent / "outside").unlink()
        refusal(verify, folder, CHECKSUMS)

    def test_a_forged_checkpoint_is_not_loaded(self, saved: Path) -> None:
        list_also(saved, "../outside", b"")
        refusal(lsm_probe.load, saved, CHECKSUMS, "../outside")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'{"files": []}',
        b'{"files": ["config.json"]}',
        b'{"files": "config.json"}',
        b'{"files": {"config.json": null}}',
        b'{"files": {"config.json": {"size": 1}}}',
        b'{"files": {"config.json": {"sha256": "00"}}}',
        b'{"files": {"config.json": {"size": "many", "sha256": "00"}}}',
        b'{"files": {"config.json": {"size": 1e999, "sha256": "00"}}}',
        b"[" * 100_000,
    ],
    ids=range(15),
)
def test_damaged_checksums_are_named(folder: Path, content: bytes) -> None:
    (folder / CHECKSUMS).write_bytes(content)
    refusal(verify, folder, str(folder / CHECKSUMS), "damaged")


class TestSaving:
    def test_two_saves_give_equal_checksums(self, tiny_lsm: Checkpoint, saved: Path, tmp_path: Path) -> None:
        tiny_lsm.save(tmp_path / "a")
        tiny_lsm.save(tmp_path / "somewhere" / "else")
        first = (tmp_path / "a" / CHECKSUMS).read_bytes()
        assert first == (tmp_path / "somewhere" / "else" / CHECKSUMS).read_bytes() == (saved / CHECKSUMS).read_bytes()

    def test_what_was_loaded_saves_as_it_was(self, saved: Path, tmp_path: Path) -> None:
        lsm_probe.load(saved, dtype="float32").save(tmp_path / "again")
        assert (tmp_path / "again" / CHECKSUMS).read_bytes() == (saved / CHECKSUMS).read_bytes()

    def test_its_name_is_on_the_disk_at_the_end(
        self, tiny_llm: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[tuple[Path, bool]] = []
        monkeypatch.setattr("lsm_probe.files.sync", lambda path: synced.append((path, (tmp_path / "out").exists())))
        tiny_llm.save(tmp_path / "out")
        assert synced == [(tmp_path, True)]

    def test_an_empty_folder_is_taken(self, tiny_llm: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        tiny_llm.save(tmp_path / "link")
        assert verify(tmp_path / "real")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]

    def test_a_relative_path_and_the_working_folder(
        self, tiny_llm: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        tiny_llm.save("below")
        assert verify(tmp_path / "here" / "below")

    @pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
    def test_a_folder_that_holds_files_is_refused(self, tiny_llm: Checkpoint, tmp_path: Path, name: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).touch()
        refusal(tiny_llm.save, tmp_path / "out", str(tmp_path / "out"), "holds files already")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_saved_checkpoint_is_never_overwritten(self, tiny_llm: Checkpoint, saved: Path) -> None:
        refusal(tiny_llm.save, saved, "holds files already")
        assert verify(saved)

    def test_a_file_is_refused(self, tiny_llm: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        refusal(tiny_llm.save, tmp_path / "file", "is a file")

    def test_one_who_was_faster_wins(
        self, tiny_llm: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save_too(folder: Path) -> None:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "config.json").write_text("the other's")

        monkeypatch.setattr(tiny_llm.tokenizer, "save_pretrained", save_too)
        refusal(tiny_llm.save, tmp_path / "out", "holds files already")
        assert (tmp_path / "out" / "config.json").read_text() == "the other's"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("step", ["model", "processor", "checksums"])
    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
    def test_an_error_leaves_nothing(
        self, tiny_lsm: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        out = tmp_path / "out"

        def then_fail(action: Callable[..., None]) -> Callable[..., None]:
            def act(folder: Path, **options: Any) -> None:
                action(folder, **options)
                # A process killed here leaves this hidden folder behind, and no checkpoint.
                assert folder.parent.name.startswith(".out.")
                assert not out.exists()
                raise error

            return act

        if step == "checksums":
            monkeypatch.setattr("lsm_probe.models.checkpoint.write_checksums", then_fail(write_checksums))
        else:
            part: Any = getattr(tiny_lsm, step)
            monkeypatch.setattr(part, "save_pretrained", then_fail(part.save_pretrained))
        with pytest.raises(type(error)):
            tiny_lsm.save(out)
        assert not list(tmp_path.iterdir())

    def test_what_a_killed_save_left_is_in_nobodys_way(self, tiny_llm: Checkpoint, tmp_path: Path) -> None:
        left = tmp_path / ".out.abcdefgh" / "out"
        left.mkdir(parents=True)
        (left / "model.safetensors").touch()
        tiny_llm.save(tmp_path / "out")
        assert verify(tmp_path / "out")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what writes more fails as on a full disk, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("part", "size"), [("config", 200), ("model", 50_000), ("tokenizer", 10_000)])
def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(
    tiny_lsm: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, size: int
) -> None:
    """Also where safetensors and tokenizers, written in Rust, raise exceptions of their own."""
    if part == "tokenizer":  # larger weights come first
        monkeypatch.setattr(tiny_lsm.model, "save_pretrained", lambda folder, **_: None)
    with room_for(size), pytest.raises(OSError) as error:
        tiny_lsm.save(tmp_path / "out")
    assert error.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
