"""The interface of importers for published systems, and their registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.identity import WeightsIdentity
from lsm_probe.models.published.release import Release
from lsm_probe.models.templates import PromptTemplate
from lsm_probe.registry import Registry

PARTS = ("encoder", "llm", "beats")
"""Names of the parts that releases may leave out; the options for them have the same names."""


@dataclass(frozen=True)
class Parts:
    """Locations of the parts that a release leaves out: folders, hub names, or None."""

    encoder: str | None = None
    llm: str | None = None
    beats: str | None = None

    def find(self, part: str, release: Release, default: object = None) -> str | None:
        """The location of a part: the given one, or else the one named by the release if it exists; see [`need`]."""
        given: str | None = getattr(self, part)
        if given is not None or not default:
            return given
        if not isinstance(default, str):
            raise InputError(f"{release.place}: its settings name {default!r} as its {part}: give it with --{part}")
        places = (release.folder / default, release.folder.resolve().parent / default)
        return next((str(place) for place in places if os.path.exists(place)), None)  # noqa: PTH110  # no name too long

    def need(self, part: str, release: Release, what: str, default: object = None) -> str:
        """The location of a part: the given one, or else the one named by the release if it exists.

        Args:
            part: one of [`PARTS`].
            release: the release that lacks the part.
            what: what the part is and where it comes from; the end of the error message.
            default: folder or file in the release's settings, absolute or relative to the release's folder or its
                parent folder.

        Raises:
            InputError: it was not given, and the release names no path or one that does not exist.
        """
        if (found := self.find(part, release, default)) is not None:
            return found
        raise InputError(f"{release.place} does not hold its {part}: give it with --{part}. It is {what}")


@dataclass(frozen=True)
class Reading:
    """A release as an LSM.

    Attributes:
        config: configuration of the LSM.
        tensors: reads the weights in the given dtype, by their names in the LSM.
        tokenizer: the LLM's, a fast one.
        feature_extractor: a `WhisperFeatureExtractor`.
        template: the prompt template, or its name.
        eos_token_ids: the tokens that end a response.
        parts: functions that identify the parts not in the release, by their names in [`PARTS`].
        settings: settings that change the weights but are not in the weight files; they are part of the identity.
        release: the release that was read, if it is a single file in the given folder. None: the given release.
    """

    config: LsmConfig
    tensors: Callable[[torch.dtype], Mapping[str, Tensor]]
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: Any
    template: str | PromptTemplate
    eos_token_ids: list[int]
    parts: Mapping[str, Callable[[], WeightsIdentity]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    release: Release | None = None


@dataclass(frozen=True)
class System:
    """A published speech LLM.

    Attributes:
        title: its name as its authors write it.
        recognises: whether a release is of this system, by its settings and the names of its files and tensors.
        read: reads a release, given the parts that it leaves out; raises InputError if that is not possible.
        needs: the names in [`PARTS`] of the parts that a release leaves out; a function if that differs by release.
    """

    title: str
    recognises: Callable[[Release], bool]
    read: Callable[[Release, Parts], Reading]
    needs: tuple[str, ...] | Callable[[Release], tuple[str, ...]] = ()

    def missing_parts(self, release: Release) -> tuple[str, ...]:
        """The parts that this release leaves out."""
        return self.needs(release) if callable(self.needs) else self.needs


def eos_token_ids(release: Release, *sources: Any) -> list[int]:
    """The tokens that end a response, from the first source that has them.

    Args:
        release: the release, for messages.
        sources: settings, configurations or tokenizers, which may have an `eos_token_id`.

    Raises:
        InputError: no source has them, or the first source that does gives something other than token ids.
    """
    values = (
        source.get("eos_token_id") if isinstance(source, Mapping) else getattr(source, "eos_token_id", None)
        for source in sources
    )
    found = next((value for value in values if value is not None and value != []), None)
    if found is None:
        raise InputError(
            f"{release.place}: no token is known that ends a response: write it as eos_token into the "
            "tokenizer_config.json of its LLM"
        )
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise InputError(
            f"{release.place}: its eos_token_id is {found!r}, which is not a token id: take config.json and "
            "generation_config.json from the original release"
        )
    return ids


SYSTEMS: Registry[System] = Registry(
    "lsm_probe.published", "published system", lambda name, found: isinstance(found, System)
)
"""Published systems by name; those of other packages come from the entry-point group `lsm_probe.published`."""
