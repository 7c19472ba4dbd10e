"""English voices that work without a network: hibari's, and flite's if that program is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile

from lsm_probe.assets.voice import speak
from lsm_probe.data.audio import SILENCE_PEAK, check_audio_file
from lsm_probe.errors import InputError
from lsm_probe.extras import install_command

DEFAULT_VOICE = "hibari:heart"
SLOWEST, FASTEST = 0.5, 2.0
MAX_CHARACTERS = 5_000
"""About five minutes of speech, ten times the length that Whisper reads."""

_CLOCKS = {"awb_time"}
"""Voices of flite that can only speak times of day."""


def available_voices() -> list[str]:
    """Names of the available voices, for example "hibari:heart" and "flite:slt"."""
    neural = [DEFAULT_VOICE] if find_spec("hibari") else []
    return neural + [f"flite:{name}" for name in _flite_voices()]


def check_voice(voice: str) -> None:
    """Raises InputError if a voice is not available."""
    if voice not in (voices := available_voices()):
        raise InputError(
            f"--voice {voice!r} is not installed; available: {', '.join(voices) or 'none'}. `hibari:heart` needs "
            f"`{install_command('speech')}`, voices of flite need `apt-get install flite`"
        )


def synthesize_text(text: str, voice: str, *, speed: float = 1.0, seed: int = 0) -> tuple[np.ndarray, int]:
    """Speaks English text.

    Args:
        text: one or more sentences, `MAX_CHARACTERS` at most.
        voice: one of [`available_voices`].
        speed: `SLOWEST` to `FASTEST`; 1.0 is the voice's own pace.
        seed: fixes the noise in a neural voice; flite has none.

    Returns:
        The samples, float32 mono [n_samples] with full scale at 1, and their rate in Hz (8,000 to 24,000).

    Raises:
        InputError: the voice is not available, or the text is too long, not in Latin letters, or has no word to speak.
    """
    check_voice(voice)
    text = check_text(text)
    engine, name = voice.split(":")
    samples, rate = _hibari(text, speed, seed) if engine == "hibari" else _flite(text, name, speed)
    if not samples.size or np.abs(samples).max() < SILENCE_PEAK:
        raise InputError(f"{voice} produces no audio for {_shortened(text)}; give English words")
    return samples, rate


def check_text(text: str) -> str:
    """The text without control characters.

    Raises:
        InputError: a voice would skip it or spell it out symbol by symbol: it is too long, has no word, or is not in
            Latin letters.
    """
    text = "".join(character if character.isprintable() else " " for character in text).strip()
    if not any(character.isalnum() for character in text):
        raise InputError(f"there is no word to speak in {_shortened(text)}; give English words")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{_shortened(text)} has {len(text)} characters, more than {MAX_CHARACTERS}; split it")
    for character in text:
        if character.isalpha() and not unicodedata.name(character, "").startswith("LATIN"):
            raise InputError(f"{character!r} in {_shortened(text)} is not a Latin letter; the voices speak English")
    return text


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _hibari(text: str, speed: float, seed: int) -> tuple[np.ndarray, int]:
    try:
        return speak(text, speed=speed, seed=seed)
    except (ValueError, LookupError) as error:  # its reader of numbers at "①" or at one of forty digits
        raise InputError(f"{DEFAULT_VOICE} cannot read {_shortened(text)} ({error}); write it out") from None


@lru_cache(maxsize=1)
def _flite_voices() -> list[str]:
    program = shutil.which("flite")
    if program is None:
        return []
    listed = subprocess.run([program, "-lv"], capture_output=True, text=True, check=False).stdout
    return [name for name in listed.partition(":")[2].split() if name not in _CLOCKS]


def _flite(text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
    # flite skips letters with accents, but reads them without accents.
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    with tempfile.TemporaryDirectory(prefix="lsm-probe-") as folder:
        path = Path(folder) / "speech.wav"
        # The text is passed on standard input: as an argument it could be read as an option or a file name.
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / speed:.6f}", "-o", str(path), "-f", "-"]
        done = subprocess.run(command, input=letters.encode(), capture_output=True, cwd=folder, check=False)
        try:
            check_audio_file(path)
            samples, rate = soundfile.read(path, dtype="float32")
        except InputError as error:
            reason = done.stderr.decode(errors="replace").strip() or str(error)
            raise InputError(f"flite cannot speak {_shortened(text)} ({reason})") from None
    return samples, int(rate)
