"""The unconverted files of a released checkpoint: its settings, tensors and tokenizer."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from lsm_probe.errors import InputError
from lsm_probe.formats import load_json
from lsm_probe.models.llm_tokenizers import read_tokenizer
from lsm_probe.models.tensors import listed
from lsm_probe.models.weight_files import find_state_dict, indexed_files, is_of_model

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pth", "*.pt", "*.bin")
"""Patterns of weight files. Only the files of the first pattern that matches any file are read."""
Config = TypeVar("Config", bound=PreTrainedConfig)
_SHARD = re.compile(r"-\d+-of-\d+\.\w+$")
_DAMAGED = "it is damaged, or holds more than tensors; download it again"
_MOST_NAMES = 2**26
"""Number of bytes searched for tensor names; the names of the largest checkpoints take a few million bytes."""


@dataclass(frozen=True)
class Release:
    """A released checkpoint.

    Attributes:
        folder: the folder that holds its files.
        file: the single weight file, if a file was given; None if a folder was given.
    """

    folder: Path
    file: Path | None = None

    @classmethod
    def at(cls, name: str | Path) -> Release:
        """The release in a folder, or the release whose single weight file is given."""
        path = Path(name)
        return cls(path.parent, path) if path.is_file() else cls(path)

    @property
    def place(self) -> Path:
        """The path that was given: the file or the folder."""
        return self.file or self.folder

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its `config.json`; empty if that is missing or cannot be read, or if a single file was given."""
        return {} if self.file is not None else self._read("config.json")

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """Its `generation_config.json`; empty if it has none.

        Raises:
            InputError: it cannot be read, or holds no settings.
        """
        path = self.folder / "generation_config.json"
        if not path.exists():
            return {}
        try:
            found = load_json(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read: get it again from the original release") from error
        if not isinstance(found, dict):
            raise InputError(f"{path} holds no settings: get it again from the original release")
        return found

    def _read(self, name: str) -> Mapping[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def llm_config(self, kind: type[Config]) -> Config:
        """The LLM's configuration. Its settings are in `config.json`, mixed with those of the system."""
        # The first two are settings from older versions of transformers, which configurations still accept.
        known = {"rope_theta", "rope_scaling", *(field.name for field in fields(kind))}
        known -= {"architectures", "dtype"}
        return self.part_config(kind, {name: value for name, value in self.config.items() if name in known})

    def part_config(self, kind: type[Config], settings: Mapping[str, Any], **defaults: Any) -> Config:
        """A configuration made from settings of `config.json`, with `defaults` for missing settings.

        Raises:
            InputError: a configuration of this kind cannot have these settings.
        """
        try:
            return kind(**{**defaults, **settings})
        except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.folder / 'config.json'} makes no {kind.__name__} ({reason}): get the file again from the "
                "original "
                "the release"
            ) from error

    @cached_property
    def files(self) -> list[Path]:
        """Its weight files.

        Raises:
            InputError: the folder holds files of two versions, or lacks a file that its index lists.
        """
        if self.file is not None:
            return [self.file]
        kinds = ([path for path in sorted(self.folder.glob(kind)) if is_of_model(path)] for kind in WEIGHTS)
        files = next((files for files in kinds if files), [])
        _check_one_version(files, self.folder)
        return files

    def pickled_files(self, pattern: str, *tensors: str) -> list[Path]:
        """Its `torch.save` files that contain each of these strings in a tensor name; damaged files are left out.

        Only the list of names is read, as bytes. Nothing is unpickled, so large files of other systems take no time.

        Args:
            pattern: pattern of file names, such as `*.pth`.
            tensors: parts of tensor names.
        """
        files = sorted(self.folder.glob(pattern)) if self.file is None else [self.file]
        return [path for path in files if path.match(pattern) and _mentions(path, tensors)]

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by the names in the files, mapped from disk where the format allows it.

        Raises:
            InputError: there are no tensors, a file is damaged or holds other objects, or two files hold the same name.
        """
        if not self.files:
            raise InputError(f"{self.folder} holds no weights ({', '.join(WEIGHTS)}): download them again")
        found: dict[str, Tensor] = {}
        for path in self.files:
            read = read_tensors(path)
            if twice := sorted(found.keys() & read.keys()):
                raise InputError(f"{path} holds {twice[0]}, which another file of the folder holds too: remove one")
            found |= read
        return found

    def holds(self, part: str) -> bool:
        """Whether any of its tensors belongs to a module of this name."""
        return any(name.startswith(f"{part}.") for name in self.tensors)

    def setting(self, name: str) -> Any:
        """A setting of its `config.json`.

        Raises:
            InputError: it is not there.
        """
        if name not in self.config:
            raise InputError(f"{self.folder / 'config.json'} lacks {name!r}: get it again from the original checkpoint")
        return self.config[name]

    def tokenizer(self, byte_pairs: type | None = None) -> PreTrainedTokenizerFast:
        """Its fast tokenizer, whatever model type `config.json` states; see [`read_tokenizer`]."""
        return read_tokenizer(self.folder, byte_pairs)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file; in the `.pth` file of a training run they are under the key `model`.

    Raises:
        InputError: the file is damaged, or holds more than tensors.
    """
    return _safetensors(path) if path.suffix == ".safetensors" else find_state_dict(read_unpickled(path))[1]


def read_unpickled(path: Path) -> dict[str, Any]:
    """The dictionary in a `torch.save` file. Only tensors and plain values are read, so no code can run.

    Raises:
        InputError: the file is damaged, or holds other objects.
    """
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(path, mmap=True, **options)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            content = torch.load(path, **options)
    except Exception as error:  # torch's unpickler raises whatever damaged bytes lead to (struct.error, KeyError, ...)
        raise InputError(f"{path} cannot be read: {_DAMAGED}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dictionary of tensors: give the file of weights")
    return content


def _mentions(path: Path, names: Iterable[str]) -> bool:
    """Whether a `torch.save` file contains all of these names."""
    try:
        with ZipFile(path) as archive:
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "")
            with archive.open(pickled) as file:
                content = file.read(_MOST_NAMES)
    except (OSError, LookupError, ValueError, NotImplementedError, RuntimeError, BadZipFile, zlib.error):
        return False
    return all(name.encode() in content for name in names)


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {_DAMAGED}") from error


def _check_one_version(files: Sequence[Path], folder: Path) -> None:
    """Refuses a folder that mixes files in its index with files not in it, or unsharded files with shards."""
    suffixes = {path.suffix for path in files}
    listed_names = {name for name in indexed_files(folder) if Path(name).suffix in suffixes}
    present = {path.name for path in files}
    if lost := sorted(listed_names - present):
        raise InputError(f"{folder} lacks {lost[0]}, which its index of weights lists: download it again")
    shards = listed_names or {name for name in present if _SHARD.search(name)}
    if shards and (others := sorted(present - shards)):
        raise InputError(
            f"{folder} holds {others[0]} beside {min(shards)}, to which it does not belong: they are of two versions; "
            "move the files of one of them (and its *.index.json) to another folder"
        )


Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
"""A regular expression for a tensor's full name in the release, and its name in the LSM (None: it is not used)."""


def rename(tensors: Mapping[str, Tensor], rules: Sequence[Rule], where: str | Path) -> dict[str, Tensor]:
    """Renames tensors to their names in the LSM, by the first rule that matches.

    Args:
        tensors: tensors by their names in the release.
        rules: see [`Rule`].
        where: the release, for messages.

    Raises:
        InputError: no rule matches a tensor.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        fits = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(name))), None)
        if fits is None:
            unknown.append(name)
        elif (new := fits[1]) is not None:
            renamed[_new_name(fits[0], new)] = tensor
    if unknown:
        raise InputError(
            f"{where} holds {listed(unknown)} that this system does not have: take the files of the release again, or, "
            "if it holds an adapter, merge that with the code that trained it"
        )
    return renamed


def _new_name(match: re.Match[str], new: str | Callable[[re.Match[str]], str]) -> str:
    return match.expand(new) if isinstance(new, str) else new(match)


def common_size(tensors: Mapping[str, Tensor], places: Mapping[str, int], where: str | Path) -> int:
    """The most common size among the given dimensions of tensors.

    A tensor with another size is refused later, with an error that names it.

    Args:
        tensors: tensors by name.
        places: regular expressions for full tensor names, each with the dimension that has this size.
        where: the release, for messages.

    Raises:
        InputError: no tensor has such a name.
    """
    sizes = Counter(
        tensor.shape[dimension]
        for pattern, dimension in places.items()
        for name, tensor in tensors.items()
        if re.fullmatch(pattern, name) and dimension < tensor.dim()
    )
    if not sizes:
        raise InputError(f"{where} lacks the tensors {' and '.join(places)}: download its weights again")
    return sizes.most_common(1)[0][0]


ROTARY: Rule = (r".*rotary_emb\.inv_freq", None)
"""Frequencies of rotary positions, saved by older versions of transformers; the configuration determines them."""
