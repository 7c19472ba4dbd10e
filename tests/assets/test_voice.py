"""The synthetic voice: absent, it says how to get it; present, it repeats itself exactly."""

import subprocess
import sys

import numpy as np
import pytest

from lsm_probe.assets import speak, voice
from lsm_probe.errors import InputError


def test_a_missing_voice_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    voice._voice.cache_clear()
    with pytest.raises(InputError, match=r"pip install .*hibari-tts"):
        speak("Hello.")


def test_the_same_seed_gives_the_same_samples() -> None:
    pytest.importorskip("hibari")
    once, rate = speak("The kettle is on the stove.", seed=3)
    again, _ = speak("The kettle is on the stove.", seed=3)
    other, _ = speak("The kettle is on the stove.", seed=4)
    assert once.dtype == np.float32
    assert once.ndim == 1
    assert rate == 24_000
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


def test_a_higher_speed_is_shorter() -> None:
    pytest.importorskip("hibari")
    plain, fast = (speak("The kettle is on the stove.", speed=speed)[0] for speed in (1.0, 1.5))
    assert len(fast) < 0.85 * len(plain)


def test_nothing_to_say_is_refused() -> None:
    pytest.importorskip("hibari")
    with pytest.raises(InputError, match="nothing to speak"):
        speak(" ")


def test_importing_the_assets_is_light() -> None:
    code = "import sys, lsm_probe.assets; print({'torch', 'transformers', 'hibari', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
