"""Options that all measurements share, declared, documented and checked once.

A measurement takes them as keyword arguments (`**options: Unpack[MeasureKeywords]`). The command line makes its options
from the fields with a `typer.Option`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import typer

from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.runner.conventions import Choices

BATCH_SIZE = 8
MAX_NEW_TOKENS = 128
CONVENTIONS, RUNNING = "Conventions", "Running"
"""Panels of `--help`."""


def parse_batch_size(value: str | int) -> int:
    """Read `--batch-size`: a positive number, or `auto` for the default.

    Raises:
        InputError: it is neither.
    """
    if value == "auto":
        return BATCH_SIZE
    if not str(value).isdecimal() or int(value) < 1:
        raise InputError(f"--batch-size {value!r} is neither `auto` nor a positive number")
    return int(value)


BatchSize = Annotated[
    int,
    typer.Option(
        parser=parse_batch_size,
        metavar="N|auto",
        help="Largest batch; halved if memory runs out.",
        rich_help_panel=RUNNING,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.", min=0, rich_help_panel=RUNNING)]
OnError = Annotated[
    Literal["fail", "skip"],
    typer.Option(help="If a sample cannot be used.", rich_help_panel=RUNNING),
]
VerifyPrecision = Annotated[
    int,
    typer.Option(
        help="Repeat N samples in float32, to compare.",
        min=0,
        metavar="N",
        rich_help_panel=RUNNING,
    ),
]
Response = Annotated[
    Literal["generated", "reference"],
    typer.Option(help="Measure the model's response or the sample's target.", rich_help_panel=CONVENTIONS),
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest response, in tokens.", min=1)]
ResponsePart = Annotated[
    Literal["all", "thinking", "answer"],
    typer.Option(help="Part of the response that is measured.", rich_help_panel=CONVENTIONS),
]


@dataclass(frozen=True, kw_only=True)
class RunOptions(Choices):
    """How a measurement runs.

    Attributes:
        batch_size: samples run together; halved if memory runs out. For given responses it changes the numbers only by
            rounding: 1e-5 relative in float32.
        seed: of every random draw of the measurement.
        on_error: `fail` stops at a sample that cannot be used, `skip` leaves it out and counts it.
        verify_precision: how many samples, from the first, are run again with the same weights in float32, on the same
            responses. The result then reports the difference between half precision and float32, and how many greedy
            responses differ. During this check, the weights take twice the memory.
        data: identity of the data as stored with the result; by default that of [`describe_data`].
        progress_folder: where finished batches are kept, so that an interrupted run continues from there.
        on_progress: called with the number of finished samples, where those that `verify_precision` repeats count
            twice; by default only notebooks show a bar.

    Raises:
        InputError: `batch_size` is below 1, `verify_precision` below 0, or `on_error` is unknown.
    """

    batch_size: BatchSize = BATCH_SIZE
    seed: Seed = 0
    on_error: OnError = "fail"
    verify_precision: VerifyPrecision = 0
    data: DataIdentity | None = None
    progress_folder: Path | None = None
    on_progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: give 1 or more")
        if self.verify_precision < 0:
            raise InputError(f"verify_precision is {self.verify_precision}: give a number of samples, or 0")


def steps(samples: int, verify_precision: int = 0) -> int:
    """How many samples a run measures in all; those that it repeats in float32 count twice.

    Args:
        samples: number of samples.
        verify_precision: as in [`RunOptions`].
    """
    return samples + min(verify_precision, samples)


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(Choices):
    """Which responses are measured.

    Attributes:
        response: `generated` is the checkpoint's own response, decoded greedily (a single EOS is a response of one
            token); `reference` is the sample's target, followed by EOS.
        max_new_tokens: longest generated response, in tokens.
        response_part: which tokens of a reasoning model's responses are measured: `all`, the `thinking`, or the
            `answer` after it. A response without thinking is all answer. Samples without the part are left out and
            counted. The model always reads the whole response.
        responses: response token ids by sample id, used instead of generating (`result.responses()` of another run).
        generated: responses that this checkpoint generated earlier with the same options, by sample id. Only the other
            samples get new responses. Unlike `responses`, these count as the checkpoint's own.

    Raises:
        InputError: `max_new_tokens` is below 1, or a value is unknown.
    """

    response: Response = "generated"
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS
    response_part: ResponsePart = "all"
    responses: Mapping[str, list[int]] | None = None
    generated: Mapping[str, list[int]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: give 1 or more")


class RunKeywords(TypedDict, total=False):
    """Keyword arguments of every measurement; [`RunOptions`] explains them."""

    batch_size: BatchSize
    seed: Seed
    on_error: OnError
    verify_precision: VerifyPrecision
    data: DataIdentity | None
    progress_folder: Path | None
    on_progress: Callable[[int], None] | None


class MeasureKeywords(RunKeywords, total=False):
    """Keyword arguments of every measurement of responses; [`ResponseOptions`] explains the first five."""

    response: Response
    max_new_tokens: MaxNewTokens
    response_part: ResponsePart
    responses: Mapping[str, list[int]] | None
    generated: Mapping[str, list[int]] | None


def split_options(
    keywords: Mapping[str, Any], *, response: Literal["generated", "reference"] = "generated"
) -> tuple[ResponseOptions, RunOptions]:
    """Split keyword arguments into the two kinds of options.

    Args:
        keywords: a measurement's `**options`.
        response: the default of `response` if `keywords` has none.

    Raises:
        TypeError: a keyword is not a shared option.
        InputError: a value cannot be used.
    """
    given = {"response": response, **keywords}
    names = [{field.name for field in fields(options)} for options in (ResponseOptions, RunOptions)]
    if unknown := [name for name in given if name not in names[0] | names[1]]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    of_response, of_run = ({name: value for name, value in given.items() if name in own} for own in names)
    return ResponseOptions(**of_response), RunOptions(**of_run)
