"""The check of a diagnosis: whether a verdict, D_i or the share in the requested format became worse.

Like the check of a curve, it reads two small JSON files and needs neither a model nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lsm_probe.data.manifest import explain
from lsm_probe.diagnosis import FILE
from lsm_probe.diagnosis.verdict import VerdictName
from lsm_probe.errors import InputError
from lsm_probe.regression.baseline import result_file
from lsm_probe.runner.dtypes import dtype_warning

CHECK_SCHEMA = "lsm-probe/check-diagnosis/1"
TOLERANCE = 0.05
GUARDED = {"instruction_sensitivity": "D_i, nats per token", "form_share": "share in the asked-for form"}
"""The numbers that must not fall, by their key in `diagnosis.json`."""
_RANK: dict[VerdictName, int] = {
    "follows the instruction": 3,
    "in between": 2,
    "cannot tell": 1,
    "does not use the speech": 0,
    "ignores the instruction (speech anchor bias)": 0,
}
"""Ranks of the verdicts (higher is better). A change to a verdict without a higher rank is a regression."""

_NOTED = ("batch_size", "dtype")
"""Settings that may differ: they change numbers only by rounding, or the check is meant to compare them."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Number(_Part):
    key: str
    value: Finite | None


class _Judged(_Part):
    checkpoint: str
    verdict: VerdictName
    evidence: list[_Number]

    def number(self, key: str) -> float | None:
        return next((each.value for each in self.evidence if each.key == key), None)


class _Data(_Part):
    sha256: str
    n_samples: int


class StoredDiagnosis(_Part):
    """The part of a `diagnosis.json` that a check reads; other content of the file is ignored."""

    schema_: Literal["lsm-probe/diagnosis/1"] = Field(alias="schema")
    base: str | None
    data: _Data
    settings: dict[str, Any]
    dtypes: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str]
    checkpoints: Annotated[list[_Judged], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A verdict or a number of one checkpoint, before and now.

    Attributes:
        checkpoint: its name in the baseline.
        what: `verdict`, or the number.
        before, now: None if a number was not measured.
        regressed: whether it became worse by more than allowed.
    """

    checkpoint: str
    what: str
    before: str | float | None
    now: str | float | None
    regressed: bool

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class DiagnosisCheck:
    """Result of a check of a diagnosis.

    Attributes:
        changes: the verdict and the checked numbers of each checkpoint.
        tolerance: the allowed fall of a number.
        two_sided: whether a rise, or a better verdict, counts as much.
        notes: other possible causes of a change than the model, one line each.
    """

    ALIGN: ClassVar[str] = "---"
    about: ClassVar[str] = "diagnosis"
    power: ClassVar[None] = None

    changes: Sequence[Change]
    tolerance: float
    two_sided: bool = False
    notes: Sequence[str] = ()

    @property
    def regressed(self) -> list[Change]:
        """The changes for the worse; empty if there is no regression."""
        return [change for change in self.changes if change.regressed]

    @property
    def headline(self) -> str:
        """The result in one line."""
        verdicts = sum(change.what == "verdict" for change in self.changes)
        if not self.regressed:
            what = "changed" if self.two_sided else "became worse"
            return f"holds: no verdict {what} ({verdicts} compared), tolerance {self.tolerance:g} for numbers"
        first = self.regressed[0]
        more = f"; {len(self.regressed)} changes in all" if len(self.regressed) > 1 else ""
        before, now = _shown(first.before), _shown(first.now)
        return f"regressed: {first.what} of {first.checkpoint} went from {before} to {now}{more}"

    def rows(self) -> list[list[str]]:
        """A table of all changes, starting with the header row."""
        head = ["checkpoint", "number", "baseline", "current", ""]
        return [
            head,
            *(
                [each.checkpoint, each.what, _shown(each.before), _shown(each.now), "regressed" * each.regressed]
                for each in self.changes
            ),
        ]

    def text(self) -> str:
        """Headline and table as plain text."""
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.headline, *table])

    def to_dict(self) -> dict[str, Any]:
        """The result for machines."""
        return {
            "schema": CHECK_SCHEMA,
            "verdict": "regressed" if self.regressed else "holds",
            "tolerance": self.tolerance,
            "two_sided": self.two_sided,
            "changes": [change.to_dict() for change in self.changes],
            "notes": list(self.notes),
        }


def check_diagnosis(
    baseline: str | Path, current: str | Path, *, tolerance: float = TOLERANCE, two_sided: bool = False
) -> DiagnosisCheck:
    """Compare a diagnosis with a baseline.

    A checkpoint has regressed if its verdict changed to one that is not better, or if its D_i (nats per token) or its
    share of responses in the requested format is lower than in the baseline by more than `tolerance`. Checkpoints are
    compared by name. If exactly one name differs, those two are compared, with a note.

    Args:
        baseline, current: a `diagnosis.json` each, or its folder.
        tolerance: the allowed fall of D_i and of the share.
        two_sided: a rise, and a better verdict, count as much.

    Raises:
        InputError: a diagnosis cannot be read, or the two have different data, settings or checkpoints.

    Example:
        ```python
        found = check_diagnosis("baselines/my-lsm.json", "runs/diagnose/my-lsm")
        assert not found.regressed, found.text()
        ```
    """
    if not tolerance >= 0:
        raise InputError(f"--tolerance {tolerance} must be 0 or more")
    before, now = read_diagnosis(baseline), read_diagnosis(current)
    _require_comparable(before, now)
    pairs = list(_pairs(before, now))
    return DiagnosisCheck(
        changes=[change for pair in pairs for change in _changes(*pair, tolerance, two_sided)],
        tolerance=tolerance,
        two_sided=two_sided,
        notes=list(_notes(before, now, [(first.checkpoint, second.checkpoint) for first, second in pairs])),
    )


def diagnosis_file(path: str | Path) -> Path:
    """The `diagnosis.json` for a path: the path itself, or the file in that folder; it may not exist."""
    return result_file(path, FILE)


def holds_diagnosis(path: str | Path) -> bool:
    """Whether a path belongs to a diagnosis: a folder with a `diagnosis.json`, or a file with its schema."""
    file = diagnosis_file(path)
    if Path(path) != file:
        return file.is_file()
    try:
        return file.is_file() and b'"lsm-probe/diagnosis/' in file.read_bytes()[:200]
    except OSError:
        return False


def read_diagnosis(path: str | Path) -> StoredDiagnosis:
    """Reads a `diagnosis.json`: the file, or the folder that holds it.

    Raises:
        InputError: it does not exist, has another schema, or a value is missing, of another type or not finite.
    """
    file = diagnosis_file(path)
    try:
        return StoredDiagnosis.model_validate_json(file.read_bytes())
    except ValidationError as error:
        reason = " ".join(explain(error).split())
        raise InputError(f"{file} is not a usable diagnosis: {reason} (write it with `lsm-probe diagnose`)") from None
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): name a diagnosis.json or the folder that holds one (a baseline "
            "that is not there yet is made with --update)"
        ) from None


def _require_comparable(before: StoredDiagnosis, now: StoredDiagnosis) -> None:
    settings = sorted((before.settings.keys() | now.settings.keys()) - set(_NOTED))
    terms = [
        ("the data (sha256)", before.data.sha256[:12], now.data.sha256[:12]),
        ("the base LLM", before.base, now.base),
        *((f"the setting {name!r}", before.settings.get(name), now.settings.get(name)) for name in settings),
    ]
    for what, first, second in terms:
        if first != second:
            raise InputError(
                f"{what} differs: {first!r} in the baseline, {second!r} in the current diagnosis; diagnose with the "
                "same, or accept another baseline with --update"
            )


def _pairs(before: StoredDiagnosis, now: StoredDiagnosis) -> Iterator[tuple[_Judged, _Judged]]:
    """Each checkpoint of the baseline with its counterpart."""
    by_name = {each.checkpoint: each for each in now.checkpoints}
    missing = [each for each in before.checkpoints if each.checkpoint not in by_name]
    others = [each for each in now.checkpoints if each.checkpoint not in {one.checkpoint for one in before.checkpoints}]
    if len(missing) == len(others) == 1:
        by_name[missing[0].checkpoint] = others[0]
    elif missing:
        raise InputError(
            f"checkpoint {missing[0].checkpoint} of the baseline is not in the current diagnosis, which has: "
            f"{', '.join(by_name)}; diagnose it again, or accept another baseline with --update"
        )
    yield from ((each, by_name[each.checkpoint]) for each in before.checkpoints)


def _changes(before: _Judged, now: _Judged, tolerance: float, two_sided: bool) -> Iterator[Change]:
    worse = two_sided or _RANK[now.verdict] <= _RANK[before.verdict]
    yield Change(
        checkpoint=before.checkpoint,
        what="verdict",
        before=before.verdict,
        now=now.verdict,
        regressed=now.verdict != before.verdict and worse,
    )
    for key, what in GUARDED.items():
        first, second = before.number(key), now.number(key)
        if first is None and second is None:
            continue
        # Six decimals are stored: 0.52 - 0.5 should be 0.02, not the float above it.
        fall = None if first is None or second is None else round(first - second, 9)
        moved = first is not None if fall is None else (abs(fall) if two_sided else fall) > tolerance
        yield Change(checkpoint=before.checkpoint, what=what, before=first, now=second, regressed=moved)


def _notes(before: StoredDiagnosis, now: StoredDiagnosis, compared: Sequence[tuple[str, str]]) -> Iterator[str]:
    known = [name for _, name in compared]
    if more := [each.checkpoint for each in now.checkpoints if each.checkpoint not in known]:
        yield f"not compared, because the baseline does not have it: {', '.join(more)}"
    for one, other in compared:
        if one != other:
            yield f"compared although the names differ: {one} and {other}"
    yield from _dtype_notes(before.dtypes, now.dtypes, compared)
    has_dtypes = bool(before.dtypes and now.dtypes)  # they say more than the setting, which may be `auto`
    for name in _NOTED[:1] if has_dtypes else _NOTED:
        first, second = before.settings.get(name), now.settings.get(name)
        if first != second:
            yield f"the setting {name!r} differs: {first!r} in the baseline, {second!r} now"
    names = sorted(before.versions.keys() | now.versions.keys())
    versions = [(name, before.versions.get(name), now.versions.get(name)) for name in names]
    if changed := [f"{name} {first} -> {second}" for name, first, second in versions if first != second]:
        yield f"versions differ: {', '.join(changed)}"


def _dtype_notes(
    before: Mapping[str, str], now: Mapping[str, str], compared: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """A warning about the checkpoints whose dtype has changed; older versions did not store dtypes."""
    dtypes: dict[str, str] = {}
    for one, other in compared:
        if one in before and other in now and before[one] != now[other]:
            dtypes |= {f"{one} in the baseline": before[one], f"{other} now": now[other]}
    if warning := dtype_warning(dtypes):
        yield warning


def _shown(value: str | float | None) -> str:
    if value is None:
        return "not measured"
    return value if isinstance(value, str) else f"{value:.3f}"
