"""Parsing responses: exact for the requested form, tolerant of typography, never matching part of a word."""

import pytest

from lsm_probe.data.corpora.labels import labels_of
from lsm_probe.data.utterance import keywords_answer, label_answer
from lsm_probe.errors import InputError
from lsm_probe.evaluation.answers import Answer, capitals, keywords, label, language, text, true_false

EMOTIONS = ["neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust"]
KEYWORDS = ["bedroom", "brightness", "decrease", "increase", "kitchen", "living room", "turn off", "turn on"]
TARGETS = {
    "de": "Der Mann geht mit dem Hund in den Park und sie wartet auf ihn.",
    "en": "The man goes to the park with his dog, and she is waiting for him.",
    "es": "El hombre va al parque con su perro y ella lo espera.",
    "fr": "L'homme va au parc avec le chien et elle est dans la maison.",
    "zh": "男人带着狗去公园。",
}


def test_any_text_follows_the_form_unless_blank():
    assert text(" Hello. \n") == Answer("Hello.", True)
    assert text(" \n\t") == Answer(None, False)


@pytest.mark.parametrize("task", ["emotion", "intent"])
def test_every_correct_answer_is_parsed_as_its_label(task):
    labels = labels_of(task)
    assert [label(labels)(label_answer(name)) for name in labels] == [Answer(name, True) for name in labels]
    assert [label(labels)(name) for name in labels] == [Answer(name, True) for name in labels]


@pytest.mark.parametrize(
    "response",
    [
        "joy",
        "Joy.",
        "'joy'",
        '"JOY"',
        "{joy}",
        "{'joy'}",
        '{ "joy" }.',
        "\n{'joy'}\n",
        "{‘joy’}",
        "“Joy”!",
        "「joy」",
        "`joy`",
    ],
)
def test_typography_of_a_label_does_not_matter(response):
    assert label(EMOTIONS)(response) == Answer("joy", True)


@pytest.mark.parametrize(
    "response",
    [
        "The emotion is joy.",
        "{'joy'}\nBecause she laughs.",
        "joy, joy",
        "{'joy'",
        "'joy",
        "{joy'}",
        "{'emotion': 'joy'}",
        "['joy']",
        "**joy**",
        "- joy",
        "-joy",
        "joy- she laughs",
        "Not anger, but joy",
        "It isn't sadness: joy",
        "joy.The speaker laughs",
    ],
)
def test_a_label_with_other_words_is_parsed_but_not_in_form(response):
    assert label(EMOTIONS)(response) == Answer("joy", False)


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n",
        "{}",
        "surprised",
        "enjoyment",
        "un-joy",
        "joy-like",
        "joy's",
        "not joy",
        "She isn't “joy”",
        "not 'joy'",
        "happy",
        "joy or anger",
        "{'joy', 'anger'}",
        ", ".join(EMOTIONS),
    ],
)
def test_no_label_or_two_labels_give_no_value(response):
    assert label(EMOTIONS)(response) == Answer(None, False)


def test_a_label_inside_a_longer_label_does_not_count():
    intents = labels_of("intent")
    assert label(intents)("{'deactivate lamp'}") == Answer("deactivate lamp", True)
    assert label(["living", "living room"])("the living room") == Answer("living room", False)
    assert label(["happy", "unhappiness", "happiness"])("unhappiness") == Answer("unhappiness", True)


def test_a_label_is_returned_as_written_in_the_list():
    parse = label(labels_of("intent"))
    assert parse("change language chinese") == Answer("change language Chinese", True)
    assert parse("change_language\n CHINESE") == Answer("change language Chinese", True)


def test_special_characters_in_a_label_are_matched_literally():
    assert label(["a.b", "c+"])("axb") == Answer(None, False)
    assert label(["a.b", "c+"])("a.b") == Answer("a.b", True)


@pytest.mark.parametrize("labels", [[], ["joy", "Joy"], ["joy", " "]])
def test_unusable_labels_are_refused(labels):
    for build in (label, lambda names: keywords(names, 2)):
        with pytest.raises(InputError, match="name each label once"):
            build(labels)


@pytest.mark.parametrize(
    "response",
    [
        keywords_answer(["kitchen", "turn on"]),
        keywords_answer(["turn on", "kitchen"]),
        '["Kitchen", "turn on"].',
        "[‘kitchen’,‘turn on’]\n",
        "[kitchen, turn_on]",
    ],
)
def test_a_bracketed_list_is_in_form_in_any_order(response):
    assert keywords(KEYWORDS, 2)(response) == Answer(frozenset({"kitchen", "turn on"}), True)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("['kitchen']", {"kitchen"}),
        ("['kitchen', 'turn on', 'increase']", {"kitchen", "turn on", "increase"}),
        ("['kitchen', 'kitchen']", {"kitchen"}),
        ("['kitchen', 'turn on', 'kitchen']", {"kitchen", "turn on"}),
        ("The keywords are ['kitchen', 'turn on']", {"kitchen", "turn on"}),
        ("['kitchen', 'turn on'] not ['bedroom']", {"kitchen", "turn on"}),
        ("kitchen, turn on", {"kitchen", "turn on"}),
        ("{'kitchen', 'turn on'}", {"kitchen", "turn on"}),
        ("Turn on the light in the living room!", {"turn on", "living room"}),
        ("['kitchen', 'garage']", {"kitchen", "garage"}),
        ("['kitchens', 'turn on']", {"kitchens", "turn on"}),
    ],
)
def test_another_number_format_or_keyword_is_not_in_form(response, value):
    assert keywords(KEYWORDS, 2)(response) == Answer(frozenset(value), False)


@pytest.mark.parametrize("response", ["", "[]", "['']", "the kitchens increased"])
def test_no_keyword_gives_no_value(response):
    assert keywords(KEYWORDS, 2)(response) == Answer(None, False)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("True.", Answer(True, True)),
        ("{'false'}", Answer(False, True)),
        ("It is true.", Answer(True, False)),
        ("true or false", Answer(None, False)),
        ("not true", Answer(None, False)),
        ("untrue", Answer(None, False)),
        ("Yes", Answer(None, False)),
        ("no", Answer(None, False)),
        ("", Answer(None, False)),
    ],
)
def test_true_and_false_are_parsed(response, answer):
    assert true_false(response) == answer


@pytest.mark.parametrize("code", TARGETS)
def test_a_translation_is_in_form_only_in_its_own_language(code):
    assert {said: language(said)(TARGETS[code]).follows for said in TARGETS} == {said: said == code for said in TARGETS}
    assert language(code)(f" {TARGETS[code]}\n").value == TARGETS[code]


def test_a_language_is_given_by_code_or_name():
    assert language("Chinese")(TARGETS["zh"]) == language("zh-CN")(TARGETS["zh"]) == Answer(TARGETS["zh"], True)


@pytest.mark.parametrize("spelling", ["zh_CN", "cmn", "yue", "Mandarin", "ZH"])
def test_a_language_is_given_in_any_spelling(spelling):
    assert language(spelling)(TARGETS["zh"]) == Answer(TARGETS["zh"], True)
    assert language(spelling)(TARGETS["de"]).follows is False


def test_vowel_signs_are_part_of_words():
    assert label(["हिन्द", "दुख"])("हिन्दी") == Answer(None, False)
    assert label(["खुशी", "दुख"])("यह खुशी है।") == Answer("खुशी", False)
    assert keywords(["दिल", "घर"], 2)("दिल्ली, घर") == Answer(frozenset({"घर"}), False)
    assert capitals("ये KITCHEN है").value == "ये KITCHEN है"


def test_a_label_is_found_in_a_script_without_spaces():
    assert label(["快乐", "悲伤"])("我觉得快乐。") == Answer("快乐", False)
    assert label(["สุข", "เศร้า"])("ฉันมีความสุขมาก") == Answer("สุข", False)
    assert label(["kitchen"])("在kitchen里") == Answer("kitchen", False)


def test_text_is_chinese_if_at_least_half_its_characters_are():
    assert language("zh")("我是 ab").follows is True
    assert language("zh")("我是 abc, 12").follows is False


def test_short_and_ungrammatical_responses_count_as_their_language():
    """A small LLM's German, French and Spanish are nonsense, but their language can be identified."""
    for response, code in {
        "Danke.": "de",
        "Ich habe die Schulem des Schulem.": "de",
        "Je suis déjà prise de la lutte, de la lutte.": "fr",
        "Le livre est toujours délicé dans le livre.": "fr",
        "El hombre de la ciudad está en la casa.": "es",
        "Turn the radio down.": "en",
    }.items():
        assert {said for said in TARGETS if language(said)(response).follows} == {code}, response


def test_less_common_languages_are_identified():
    assert language("Swedish")("Mannen går till parken med sin hund och hon väntar på honom.").follows is True
    assert language("ja")("男の人は犬を連れて公園に行きます。").follows is True
    assert [language(other)(TARGETS["en"]).follows for other in ("sv", "ja")] == [False, False]


@pytest.mark.parametrize("response", ["12:30", "...", "OK"])
def test_an_unidentifiable_language_is_unknown(response):
    assert language("de")(response) == Answer(response, None)


def test_a_language_unknown_to_the_identifier_is_unknown():
    assert language("tlh")(TARGETS["en"]).follows is None


def test_a_blank_translation_is_not_in_form():
    assert language("zh")(" ") == language("sv")("") == Answer(None, False)
