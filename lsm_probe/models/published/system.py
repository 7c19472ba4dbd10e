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
"""Parts that releases leave out, by the names of the options that give them."""


@dataclass(frozen=True)
class Parts:
    """Locations of the parts that a release leaves out: folders, hub names, or None."""

    encoder: str | None = None
    llm: str | None = None
    beats: str | None = None

    def find(self, part: str, release: Release, default: object = None) -> str | None:
        """The place of a part: the one given, or else the one that the release names, if it is there; see [`need`]."""
        given: str | None = getattr(self, part)
        if given is not None or not default:
            return given
        if not isinstance(default, str):
            raise InputError(f"{release.place}: its settings name {default!r} as its {part}: give it with --{part}")
        places = (release.folder / default, release.folder.resolve().parent / default)
        return next((str(place) for place in places if os.path.exists(place)), None)  # noqa: PTH110  # no name too long

    def need(self, part: str, release: Release, what: str, default: object = None) -> str:
        """The place of a part: the one given, or else the one that the release names, if it is there.

        Args:
            part: one of [`PARTS`].
            release: that lacks it.
            what: what it is and where it comes from; ends the error.
            default: folder or file in the release's settings, absolute or relative to the release's folder or the one
                above.

        Raises:
            InputError: it was not given, and the release names none that is here, or something else than a path.
        """
        if (found := self.find(part, release, default)) is not None:
            return found
        raise InputError(f"{release.place} does not hold its {part}: give it with --{part}. It is {what}")


@dataclass(frozen=True)
class Reading:
    """A release as an LSM.

    Attributes:
        config: of the LSM.
        tensors: reads the weights, by their names in the LSM, in the dtype given.
        tokenizer: the LLM's, a fast one.
        feature_extractor: a `WhisperFeatureExtractor`.
        template: the prompt template, or its name.
        eos_token_ids: what ends a response.
        parts: functions that identify the parts that came from elsewhere, by their names in [`PARTS`].
        settings: what changes its weights and stands in none of its files of weights, for its identity.
        release: the one that was read: of a folder in which a single file is the release, that file. None: the folder.
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
        read: reads a release, given the parts that it leaves out; raises InputError if it cannot.
        needs: the parts, of [`PARTS`], that a release leaves out; a function where releases differ in that.
    """

    title: str
    recognises: Callable[[Release], bool]
    read: Callable[[Release, Parts], Reading]
    needs: tuple[str, ...] | Callable[[Release], tuple[str, ...]] = ()

    def missing_parts(self, release: Release) -> tuple[str, ...]:
        """The parts that this release leaves out."""
        return self.needs(release) if callable(self.needs) else self.needs


def eos_token_ids(release: Release, *sources: Any) -> list[int]:
    """What ends a response, by the first source that says it.

    Args:
        release: for messages.
        sources: settings, configurations or tokenizers, which may have an `eos_token_id`.

    Raises:
        InputError: none has one, or the first that has one does not give token ids.
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
