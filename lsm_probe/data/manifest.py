"""The manifest format: plain JSONL, one sample per line, audio paths relative to the manifest's folder."""

import hashlib
import json
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lsm_probe.checksums import file_sha256
from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.files import plain_name, regular_file_bytes, replacing
from lsm_probe.formats import RepeatedKey, load_json, open_unpacked

_BUILTIN = "builtin:"
BUILTIN_SETS = ("probe", "commands")
"""The packaged manifests: our own sentences with the probing instructions, and spoken commands from the same domain as
the training data of `builtin:vanilla_asr` and `builtin:self_powered`."""


def builtin_manifest(name: str) -> Path:
    """Path of a packaged manifest of [`BUILTIN_SETS`], `data/builtin_NAME/manifest.jsonl`."""
    return Path(str(resources.files("lsm_probe") / "data" / f"builtin_{name}" / "manifest.jsonl"))


def read_manifest(path: str | Path, *, on_error: OnError = "fail") -> list[Sample]:
    """Reads a JSONL manifest (UTF-8, optionally gzipped; blank lines and a byte order mark allowed), in its order.

    `id`, `instruction` and `audio` or `text` are required; `target`, `alternatives` (a list of further right
    answers), `start` and `duration` (seconds), `task`, `language` and `context` are optional, and null means left
    out. Other keys are left out with one UserWarning. Relative audio paths start at the manifest's folder. The files
    named must exist; they are not opened.

    Args:
        path: The manifest; "builtin:probe" or "builtin:commands" for one of the package.
        on_error: At lines that are unusable: "fail", or "skip" them with one UserWarning that counts them.

    Raises:
        InputError: The manifest cannot be read or holds no usable sample, or lines of it are unusable. The
            message names file and line of the first and counts the rest.
    """
    problems = Problems()
    found = list(scan_manifest(path, problems))
    problems.settle(on_error)
    if not found:
        raise InputError(f"{_locate(path)}: holds no usable sample; write one JSON object a line")
    return [sample for _, sample in found]


def scan_manifest(path: str | Path, problems: Problems) -> Iterator[tuple[str, Sample]]:
    """Yields the usable samples of a manifest ([`read_manifest`]) with their places; other lines are added to
    `problems`.

    Raises:
        InputError: The manifest itself cannot be read.
    """
    manifest = _locate(path)
    folder = manifest.parent.absolute()
    line_of: dict[str, int] = {}
    unknown: dict[str, int] = {}  # key -> the line it was first seen on
    for number, line in manifest_lines(manifest):
        place = f"{manifest}, line {number}"
        with problems.catching(place):
            values = _parse_object(line)
            sample = _to_sample(values, folder)
            if sample.id in line_of:
                raise InputError(f"sample {sample.id!r}: line {line_of[sample.id]} has the same id; ids must be unique")
            line_of[sample.id] = number
            for key in _unknown_keys(values):
                unknown.setdefault(key, number)
            yield place, sample
    warn_of_unknown_keys(manifest, unknown)


def warn_of_unknown_keys(path: Path, line_of: dict[str, int]) -> None:
    """Warns about unknown keys in a JSONL file, each with the line where it first occurs."""
    if line_of:
        keys = ", ".join(f"{key!r} (line {number})" for key, number in sorted(line_of.items()))
        warnings.warn(f"{path}: unknown keys are left out: {keys}", stacklevel=4)


@contextmanager
def manifest_writer(path: str | Path) -> Iterator[Callable[[Sample], None]]:
    """Yields a function that writes one sample; the manifest appears, complete, if the block ends without an error.

    Audio paths below the manifest's folder are written relative to it, so that the folder can be moved; others
    absolute. Audio in memory has no path: [`write_manifest`] writes it to files.

    Raises:
        InputError: the audio of a sample is in memory.
    """
    path = Path(path)
    folder = path.parent.resolve()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:

        def write(sample: Sample) -> None:
            if isinstance(sample.audio, AudioBytes):
                raise InputError(
                    f"sample {sample.id!r}: its audio is in memory, and a manifest names files: write the samples with "
                    "lsm_probe.write_manifest, then read that manifest"
                )
            values = sample.model_dump(exclude_defaults=True, mode="json")
            if sample.audio is not None:
                audio = sample.audio.resolve()
                inside = audio.is_relative_to(folder)
                # With "./" before it, a name with a colon is not read back as a URL.
                values["audio"] = f"./{audio.relative_to(folder)}" if inside else str(audio)
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

        yield write


def write_manifest(samples: Iterable[Sample], path: str | Path, *, audio_folder: str | Path | None = None) -> Path:
    """Writes a manifest, and writes audio that is in memory to files that it names.

    Files keep the bytes, so that results on the manifest have the same data hash as results on the samples. Audio that
    is already in files is not copied.

    Args:
        samples: from [`lsm_probe.samples`] or [`read_manifest`].
        path: the manifest to write.
        audio_folder: where the files go; by default `NAME_audio` beside a manifest `NAME.jsonl`.

    Returns:
        The manifest's path.

    Example:
        >>> wave = np.zeros(16_000, np.float32)
        >>> found = lsm_probe.samples([(wave, 16_000)], instruction="Write down what is said.")
        >>> lsm_probe.write_manifest(found, "clips.jsonl")
        PosixPath('clips.jsonl')
    """
    path = Path(path)
    folder = Path(audio_folder) if audio_folder is not None else path.with_name(f"{plain_name(path.stem)}_audio")
    written: dict[AudioBytes, Path] = {}  # many instructions share an utterance
    with manifest_writer(path) as write:
        for sample in samples:
            audio = sample.audio
            if isinstance(audio, AudioBytes):
                if audio not in written:
                    # The hash keeps apart ids that are one name on disk.
                    written[audio] = folder / f"{plain_name(sample.id)}-{audio.sha256[:8]}{audio.suffix}"
                    with replacing(written[audio]) as temporary:
                        temporary.write_bytes(audio.read())
                sample = sample.model_copy(update={"audio": written[audio]})
            write(sample)
    return path


def describe_data(samples: Sequence[Sample], name: str = "samples") -> DataIdentity:
    """The identity of samples, as stored in results."""
    return DataIdentity(name, fingerprint(samples), len(samples))


def fingerprint(samples: Iterable[Sample]) -> str:
    """sha256 (hexadecimal) of the content of the samples, in their order, independent of the location of their files.

    It covers id, instruction, text, target, alternatives, context, start, duration and the bytes of each sound file. So
    two results with the same hash come from the same data.

    Raises:
        InputError: A sound file cannot be read; names the sample.
    """
    total = hashlib.sha256()
    audio_hashes: dict[Path | AudioBytes, str] = {}  # many instructions share an utterance
    for sample in samples:
        content: dict[str, Any] = sample.model_dump(
            include={"id", "instruction", "text", "target", "context", "start", "duration"}
        )
        if sample.alternatives:
            content["alternatives"] = sample.alternatives
        content["audio"] = None
        if sample.audio is not None:
            if sample.audio not in audio_hashes:
                audio_hashes[sample.audio] = _file_sha256(sample)
            content["audio"] = audio_hashes[sample.audio]
        total.update(json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return total.hexdigest()


def _locate(path: str | Path) -> Path:
    if str(path).startswith(_BUILTIN):
        name = str(path).removeprefix(_BUILTIN)
        if name not in BUILTIN_SETS:
            there = ", ".join(_BUILTIN + name for name in BUILTIN_SETS)
            raise InputError(f"{path} is not built in; use one of {there}, or the path of a manifest")
        path = builtin_manifest(name)
    try:
        regular_file_bytes(Path(path))
    except InputError as error:
        raise InputError(f"manifest {error}") from None
    return Path(path)


def manifest_lines(manifest: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. As bytes, because JSON strings may contain U+2028, where str splits lines.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open_unpacked(manifest) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"manifest {manifest} cannot be read ({reason})") from None


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        values = load_json(line.decode())
    except RepeatedKey as error:
        raise InputError(f"is ambiguous: {error}; keep one of them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start + 1} is not UTF-8; save the manifest as UTF-8") from None
    except json.JSONDecodeError as error:
        if b"\0" in line:
            raise InputError("holds a NUL byte, as UTF-16 does; save the manifest as UTF-8") from None
        raise InputError(f"is not JSON ({error.msg}, column {error.colno}); write one JSON object a line") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets nested as deep
        raise InputError("holds JSON too deep or a number too long to read; write plain values") from None
    if not isinstance(values, dict):
        raise InputError(f"is a JSON {type(values).__name__}; write one JSON object a line")
    return values


def _to_sample(values: dict[str, Any], folder: Path) -> Sample:
    where = f"sample {values['id']!r}: " if isinstance(values.get("id"), str) else ""
    # Tables exported to JSON write null for a missing value.
    known = {key: values[key] for key in Sample.model_fields if values.get(key) is not None}
    try:
        sample = Sample.model_validate(known)
        if not isinstance(sample.audio, Path):
            return sample
        # Joined after the check: "folder/https://..." would no longer look like a URL.
        audio = _as_on_disk(folder, sample.audio)
        regular_file_bytes(audio)
    except ValidationError as error:
        raise InputError(where + explain(error) + _mistaken(values, error)) from None
    except InputError as error:
        raise InputError(f"{where}audio {error}") from None
    return sample.model_copy(update={"audio": audio})


def _as_on_disk(folder: Path, audio: Path) -> Path:
    """The file, even if the disk stores its name in another Unicode form: NFC, or NFD as on macOS."""
    spellings = (audio, *(Path(unicodedata.normalize(form, str(audio))) for form in ("NFC", "NFD")))
    with suppress(OSError, ValueError):  # the caller reports a missing file
        return next((folder / path for path in spellings if (folder / path).exists()), folder / audio)
    return folder / audio


def _unknown_keys(values: dict[str, Any]) -> list[str]:
    return sorted(values.keys() - Sample.model_fields.keys())


def _mistaken(values: dict[str, Any], error: ValidationError) -> str:
    """The unknown keys of a line that lacks a key: the missing one may have another name."""
    first = error.errors(include_url=False)[0]
    unknown = _unknown_keys(values)
    # If a sample names no source, the error is about the whole sample.
    if not unknown or (first["type"] != "missing" and first["loc"]):
        return ""
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return f" (unknown keys of this line: {', '.join(map(repr, unknown[:5]))}{more})"


def explain(error: ValidationError) -> str:
    """The first error in a sample or a config, in our words if pydantic's do not say how to fix it."""
    first = error.errors(include_url=False)[0]
    key = f"{'.'.join(map(str, first['loc']))!r} " if first["loc"] else ""
    if first["type"] == "missing":
        return f"{key}is missing; add it"
    if first["type"] == "extra_forbidden":
        return f"{key}is not a setting; look at its spelling"
    if first["type"] == "value_error":
        return f"{key}{first['ctx']['error']}"
    given = repr(first["input"])
    given = given if len(given) <= 40 else given[:37] + "..."
    if first["type"] == "string_type" and isinstance(first["input"], int | float):
        return f"{key}is {given}, which is not text; put it in quotes"
    return f"{key}is {given}; {first['msg'][:1].lower()}{first['msg'][1:]}"


def _file_sha256(sample: Sample) -> str:
    if isinstance(sample.audio, AudioBytes):
        return sample.audio.sha256
    assert sample.audio is not None
    try:
        regular_file_bytes(sample.audio)
        return file_sha256(sample.audio)
    except InputError as error:
        raise InputError(f"sample {sample.id!r}: audio {error}") from None
