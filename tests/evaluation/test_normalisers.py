"""Word and character error rates by language, counted by hand; texts on which Whisper's normalisers would be very
slow."""

import random
import time

import pytest
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from lsm_probe.errors import InputError
from lsm_probe.evaluation.metrics import word_error_rate
from lsm_probe.evaluation.normalisers import normalise_pair
from lsm_probe.evaluation.scoring import Predictions, score
from lsm_probe.evaluation.task import Task, read_task
from lsm_probe.languages import find_language

# language, reference, response with one error, number of words or characters of the reference
ONE_ERROR = {
    "en": ("She has two books.", "She had two books", 4, "words"),
    "de": ("Schöne Grüße aus Köln!", "Schone Grüße aus Köln", 4, "words"),
    "es": ("El año que viene", "el ano que viene", 4, "words"),
    "vi": ("Tôi ăn cơm", "Tôi an cơm", 3, "words"),
    "hi": ("मैं किताब पढ़ता हूँ।", "मैं कितब पढ़ता हूँ", 4, "words"),
    "ta": ("நான் புத்தகம் படிக்கிறேன்", "நான் புத்தகம படிக்கிறேன்", 3, "words"),
    "ko": ("오늘은 비가 옵니다.", "오늘은 눈이 옵니다", 3, "words"),
    "ar": ("كَتَبَ الوَلَدُ الدَّرْسَ", "كتب البنت الدرس", 3, "words"),
    "zh": ("他今天去学校。", "她今天去学校", 6, "characters"),
    "yue": ("佢今日返學", "你今日返學", 5, "characters"),
    "ja": ("今日は雨です。", "今日は雪です", 6, "characters"),
    "th": ("ผมชอบกินข้าว", "ผมชอบกินข่าว", 10, "characters"),  # ผ ม ช อ บ กิ น ข้ า ว
    "lo": ("ຂ້ອຍກິນເຂົ້າ", "ຂ້ອຍກິນເຂົ່າ", 8, "characters"),  # ຂ້ ອ ຍ ກິ ນ ເ ຂົ້ າ
    "km": ("ខ្ញុំទៅផ្ទះ", "ខ្ញុំនៅផ្ទះ", 3, "characters"),  # ខ្ញុំ ទៅ ផ្ទះ
    "my": ("ငါသွား", "ငါသူား", 5, "characters"),  # င ါ သွ ာ း
}


@pytest.mark.parametrize("language", ONE_ERROR)
def test_one_error_counts_as_one_word_or_character(language):
    reference, response, length, unit = ONE_ERROR[language]
    rate = word_error_rate([reference], [response], [language])
    assert rate.value == pytest.approx(100 / length)
    assert rate.details[unit] == length
    assert rate.estimate(["u"]).convention.startswith(unit)
    assert word_error_rate([reference], [reference.replace(".", " !")], [language]).value == 0


@pytest.mark.parametrize("given", [None, "en"])
@pytest.mark.parametrize("language", ["hi", "ta", "ko", "zh", "yue", "ja", "th", "lo", "km", "my"])
def test_other_scripts_without_a_language_give_the_same_rate_and_one_warning(language, given):
    reference, response, length, unit = ONE_ERROR[language]
    with pytest.warns(UserWarning, match=r"2 samples \(first: s1\) .* not in Latin script") as warned:
        rate = word_error_rate([reference] * 2, [response] * 2, [given] * 2, ids=["s1", "s2"])
    assert len(warned) == 1
    assert rate.value == pytest.approx(100 / length)
    assert rate.details[unit] == 2 * length
    assert rate.details["normalisers"] == {"basic-with-marks": 2}


def test_latin_script_without_a_language_is_read_as_english_with_a_warning_for_accents():
    with pytest.warns(UserWarning, match=r"first: number 1 \(from 0\).*does not tell ä from a"):
        rate = word_error_rate(["He's here", "Schöne Grüße"], ["he is here", "Schone Grüße"])
    assert (rate.value, rate.details["normalisers"], rate.details["assumed_english"]) == (0, {"whisper-english": 2}, 2)


def test_samples_of_several_languages_each_count_in_their_own_unit():
    rate = word_error_rate(["twenty one", "他去", "für uns"], ["21", "她去", "fur uns"], ["English", "cmn", "Deutsch"])
    # 1 word ("21"), 2 characters, 2 words; 1 character and 1 word are wrong
    assert rate.value == pytest.approx(100 * 2 / 5)
    assert (rate.details["words"], rate.details["characters"]) == (3, 2)
    assert rate.details["normalisers"] == {"whisper-english": 1, "basic-with-marks": 2}


@pytest.mark.parametrize(
    ("reference", "response", "language"),
    [
        ("İyi IŞIK", "iyi ışık", "tr"),
        ("می\u200cخواهم", "میخواهم", "fa"),  # the joiner of Persian is invisible
        ("ខ្ញុំ\u200bទៅ", "ខ្ញុំ ទៅ", "km"),  # words parted by a space of no width
        ("\u200fשָׁלוֹם", "שלום", "he"),
        ("مُحَمَّد", "محمد", "arz"),  # Arabic of Egypt
        ("u\u0308ber", "über", "de"),
        ("ＡＢＣ（笑）", "abc 笑", "ja"),
    ],
)
def test_the_same_text_in_another_spelling_has_no_errors(reference, response, language):
    assert word_error_rate([reference], [response], [language]).value == 0


def test_an_unknown_language_is_refused_with_its_sample():
    with pytest.raises(InputError, match="sample s2: language 'xx' is not a language; write an ISO 639 code"):
        word_error_rate(["a", "b"], ["a", "b"], ["en", "xx"], ids=["s1", "s2"])


def test_a_task_is_scored_in_its_language_or_that_of_each_sample():
    rows = [{"id": "a", "reference": "für", "response": "fur", "language": "en"}]
    task = Task(name="said", title="Said", metrics=("word_error_rate",))
    assert score(Predictions(task, rows))["word_error_rate"].value == 0
    assert score(Predictions(task.model_copy(update={"language": "de"}), rows))["word_error_rate"].value == 100
    assert score(Predictions(task, [rows[0] | {"language": "German"}]))["word_error_rate"].value == 100


def test_normalisers_equal_whispers_for_any_brackets_and_spaces():
    theirs = {"en": EnglishTextNormalizer(), "de": BasicTextNormalizer(preserve_marks=True)}
    draw = random.Random(0)
    parts = [*"ab[]<>() \n.,5$", "'s", "can", "'t", "'d been", " one"]
    for _ in range(1_000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 25)))
        for code, normalise in theirs.items():
            pair = normalise_pair(text, text, find_language(code))
            assert pair.reference.split() == normalise(text).split(), text


@pytest.mark.parametrize("text", ["[" * 50_000, "(" * 50_000, "<" * 50_000, " " * 50_000 + "x", "7" * 5_000])
@pytest.mark.parametrize("language", ["en", "de", "zh"])
@pytest.mark.filterwarnings("ignore")
def test_a_degenerate_response_is_scored_quickly_as_wrong(text, language):
    start = time.process_time()
    assert word_error_rate(["go home"], [text], [language]).value >= 100
    assert time.process_time() - start < 5


def test_text_that_the_english_normaliser_cannot_read_is_reported_with_its_sample():
    with pytest.warns(UserWarning, match=r"1 samples \(first: b\) hold what Whisper's English normaliser cannot read"):
        rate = word_error_rate(["one", "two three"], ["1", "7" * 5_000], ["en", "en"], ids=["a", "b"])
    assert rate.value == pytest.approx(100 * 2 / 3)
    assert rate.details["normalisers"] == {"whisper-english": 1, "basic-with-marks": 1}


@pytest.mark.parametrize("tail", [" x" * 100_000, "e" + "\u0301\u0327" * 100_000])
def test_only_the_start_of_a_very_long_response_is_scored_with_a_warning(tail):
    rows = [{"id": f"s{i}", "reference": "true", "response": said} for i, said in enumerate(["True.", "true" + tail])]
    predictions, start = Predictions(read_task("boolq"), rows), time.process_time()
    with pytest.warns(UserWarning, match=r"of 1 samples \(first: s1\) a text is too long"):
        assert score(predictions)["accuracy"].value == 50
    assert predictions.truncated_ids == ["s1"]
    assert time.process_time() - start < 5
