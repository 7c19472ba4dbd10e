"""Languages by code, tag and name, all to one."""

import pytest

from lsm_probe.data.manifest import read_manifest
from lsm_probe.errors import InputError
from lsm_probe.languages import find_language, require_language


@pytest.mark.parametrize(
    ("spellings", "code", "name", "is_spaced"),
    [
        (
            ["zh", "ZH", "zh_CN", "zh-TW", "cmn", "zho", "Mandarin", "chinese", "中文", "Chinese (Simplified)"],
            "zh",
            "Chinese",
            False,
        ),
        (["yue", "Cantonese", "zh-yue"], "yue", "Cantonese", False),
        (["ja_jp", "Japanese", "jpn"], "ja", "Japanese", False),
        (["Thai", "tha", "th_TH"], "th", "Thai", False),
        (["en", "eng", "EN_us", "english", "British English"], "en", "English", True),
        (["de", "deutsch", "German", "de-AT"], "de", "German", True),
        (["iw", "Hebrew"], "he", "Hebrew", True),
        (["ko", "Korean"], "ko", "Korean", True),
        (["tl", "fil", "Tagalog", "Filipino"], "fil", "Filipino", True),
        (["vi"], "vi", "Vietnamese", True),
        (["zh-Latn"], "zh", "Chinese", True),
    ],
)
def test_all_spellings_are_one_language(spellings, code, name, is_spaced):
    for spelling in spellings:
        found = require_language(spelling)
        assert (found.code, found.name, found.is_spaced) == (code, name, is_spaced), spelling


@pytest.mark.parametrize("spelling", [None, "", " ", "und", "mul"])
def test_no_language_is_none(spelling):
    assert find_language(spelling) is None


@pytest.mark.parametrize(
    "spelling", ["xx", "jp", "ua", "en-", "transcription", "pirate", "Germany", "a b", "?", "en,de", "x-foo"]
)
def test_what_is_no_language_is_refused(spelling):
    with pytest.raises(InputError, match="is not a language; write an ISO 639 code"):
        find_language(spelling)


def test_a_missing_value_of_pandas_is_not_min_nan():
    with pytest.raises(InputError, match="'nan' may be a missing value, or Min Nan Chinese: leave it out, or write"):
        find_language("nan")
    assert require_language("nan-Hant").is_spaced is False


def test_a_manifest_is_refused_at_the_line_of_an_unknown_language(tmp_path):
    lines = [
        f'{{"id": "s{i}", "instruction": "Say it.", "text": "a", "language": "{x}"}}'
        for i, x in enumerate(["ZH", "jp"])
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="line 2: sample 's1': 'language' 'jp' is not a language; write"):
        read_manifest(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text(lines[0])
    assert read_manifest(tmp_path / "m.jsonl")[0].language == "ZH"
