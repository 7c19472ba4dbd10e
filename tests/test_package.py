"""What the package index is told: no link of its page depends on the repository's other files."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def hatch_build():
    """The script that makes the metadata, which is not a part of the package."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_into_the_repository(hatch_build):
    address = "https://example.org/owner/lsm-probe"
    written, shown = LINK.findall(README), LINK.findall(hatch_build.for_index(README, address))
    assert len(shown) == len(written)
    for before, after in zip(written, shown, strict=True):
        if re.match(r"\w+:", before):
            assert after == before
            continue
        kind, path = re.fullmatch(f"{address}/(blob|raw)/main/([^#]+)(#.*)?", after).groups()[:2]
        assert (ROOT / path).exists()
        assert (kind == "raw") == path.endswith(".png")


def test_without_an_address_relative_links_are_plain_text(hatch_build):
    shown = hatch_build.for_index(README, "")
    assert all(re.match(r"\w+:", target) for target in LINK.findall(shown))
    assert "The overview lists all pages" in shown
    assert not re.search(r"!\[[^\]]*\]\((?!https:)", shown)


def test_metadata_follow_from_the_address(hatch_build, monkeypatch):
    hook = hatch_build.IndexMetadata(str(ROOT), {})
    for address, names in (("", set()), ("https://example.org/lsm-probe", {"Repository", "Documentation", "Issues"})):
        monkeypatch.setattr(hatch_build, "REPOSITORY", address)
        metadata = {}
        hook.update(metadata)
        assert metadata.get("urls", {}).keys() == names
        assert metadata["readme"]["content-type"] == "text/markdown"
        assert (f"{address}/blob/main/docs/index.md" in metadata["readme"]["text"]) == bool(address)
