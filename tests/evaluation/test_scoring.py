"""Each built-in task on responses written by hand, with expected metrics counted by hand or by a library.

`strict` counts responses that have the requested form and are right. `lenient` also counts those that name the right
label among other words, as a model with speech anchor bias does when it transcribes instead of giving a label.
"""

import jiwer
import pytest
import sacrebleu
from whisper_normalizer.english import EnglishTextNormalizer

from lsm_probe.evaluation.scoring import FOLLOWING, Predictions, score
from lsm_probe.evaluation.task import builtin_tasks, read_task

TRANSCRIBED = [
    ("ALSO A POPULAR CONTRIVANCE", "Also a popular contrivance."),
    ("HE HAS TWENTY ONE COATS", "He has 21 coats."),
    ("THE OLD TOWN", "The old down."),
    ("GO HOME", ""),
    ("IT RAINS", "Sure! It rains today."),
]
# Errors: 0, 0 (the normaliser writes "21" of "twenty one", which makes 4 words), 1 substitution, 2 deletions, and 2
# insertions: 5. Words: 4, 4, 3, 2, 2: 15. Rates: 0, 0, 1/3, 1, 1.
TRANSCRIPTION = (TRANSCRIBED, {"word_error_rate": 100 * 5 / 15, "word_error_rate_macro": 100 * (1 / 3 + 1 + 1) / 5})

CAPITALS = (
    [
        ("TURN ON THE LAMP.", "TURN ON THE LAMP"),  # the full stop does not matter
        ("TURN ON THE FAN.", "Turn on the fan."),  # the transcript: not in capitals, though every word is right
        ("OPEN THE DOOR.", "SHUT THE DOOR."),  # in capitals, 1 of 3 words wrong
        ("SHUT THE DOOR.", ""),  # 3 words deleted
    ],
    # Words: 4, 4, 3, 3: 14. In capitals are the first and the third.
    {"accuracy": 100 / 4, "word_error_rate": 100 * 4 / 14, FOLLOWING: 100 * 2 / 4},
)


def labels(*pairs, strict, lenient, following):
    """Numbers of responses counted by hand, instead of rates."""
    numbers = {"accuracy": strict, "accuracy_lenient": lenient, FOLLOWING: following}
    return pairs, {name: 100 * number / len(pairs) for name, number in numbers.items()}


DEVICE = labels(
    ("lamp", "Lamp."),  # strict
    ("lamp", "fan"),  # wrong, but in form
    ("fan", "It is the fan."),  # lenient
    ("radio", "Turn off the radio in the kitchen."),  # the transcript: lenient
    ("door", ""),
    ("window", "the door or the window"),  # two labels are none
    strict=1,
    lenient=3,
    following=2,
)

PLACE = labels(
    ("living room", "'Living room'"),  # strict
    ("garage", "garage!"),  # strict
    ("bedroom", "bathroom"),  # wrong, but in form
    ("dining room", "Open the window in the dining room."),  # the transcript: lenient
    ("office", "the room"),
    ("kitchen", ""),
    ("office", "not office"),
    strict=2,
    lenient=3,
    following=3,
)

INTENT = labels(
    ("{'activate lamp'}", '{"activate lamp"}.'),  # strict
    ("{'change language Chinese'}", "change language chinese"),  # strict: bare
    ("{'increase volume'}", "{'decrease volume'}"),  # wrong, but in form
    ("{'bring shoes'}", "The intent is bring shoes."),  # lenient
    ("{'bring socks'}", "Bring socks to me."),  # the transcript, which names the label: lenient
    ("{'deactivate lights'}", "Turn off the lights in the kitchen."),  # the transcript, which does not
    ("{'activate music'}", ""),
    strict=2,
    lenient=4,
    following=3,
)

COMMANDS_INTENT = labels(
    ("{'open door'}", "{'open door'}"),  # strict
    ("{'close window'}", "{'open window'}"),  # wrong, but in form
    ("{'close curtains'}", "Close curtains, please."),  # the transcript, which names the label: lenient
    ("{'increase radio'}", "{'increase radio'}, because it is quiet"),  # lenient
    ("{'activate fan'}", "Please turn on the fan."),  # the transcript, which does not
    ("{'open door'}", ""),
    strict=1,
    lenient=3,
    following=2,
)

KEYWORDS = labels(
    ("['turn on', 'lamp', 'kitchen']", "['kitchen', 'turn on', 'lamp']"),  # strict, in any order
    ("['turn on', 'lamp', 'kitchen']", "['turn off', 'lamp', 'kitchen']"),  # wrong, but in form
    ("['open', 'door', 'garage']", "open, door, garage"),  # lenient
    ("['turn on', 'lamp', 'kitchen']", "Turn on the lamp in the kitchen."),  # the transcript: lenient
    ("['turn on', 'lamp', 'kitchen']", "['lamp', 'kitchen']"),  # one too few
    ("['shut', 'window', 'office']", ""),
    strict=1,
    lenient=3,
    following=2,
)

LIGHTS = labels(
    ("['turn on', 'kitchen']", '["Kitchen", "turn on"]'),  # strict
    ("['increase', 'brightness']", "['decrease', 'brightness']"),  # wrong, but in form
    ("['turn off', 'bedroom']", "turn off, bedroom"),  # lenient
    ("['turn on', 'living room']", "Turn on the lights in the living room."),  # the transcript: lenient
    ("['decrease', 'brightness']", "dim it"),  # the transcript, which names none
    ("['turn on', 'kitchen']", "['turn on', 'kitchen', 'bedroom']"),  # one too many
    ("['turn on', 'kitchen']", "[]"),
    strict=1,
    lenient=3,
    following=2,
)

WASHING = labels(
    ("['brightness', 'increase', 'kitchen']", "['increase', 'brightness', 'kitchen']"),  # strict
    ("['brightness', 'increase', 'kitchen']", "['increase', 'brightness', 'bedroom']"),  # wrong, but in form
    ("['brightness', 'increase', 'kitchen']", "Increase the brightness in the kitchen."),  # the transcript: lenient
    ("['brightness', 'increase', 'kitchen']", "They are ['increase', 'brightness', 'kitchen']"),  # lenient
    ("['brightness', 'increase', 'kitchen']", ""),
    strict=1,
    lenient=3,
    following=2,
)

BOOLQ = labels(
    ("true", "True."),  # strict
    ("false", "true"),  # wrong, but in form
    ("false", "The answer is false."),  # lenient
    ("true", "Is it true that it rains?"),  # the question again: lenient
    ("false", "No."),  # neither word
    ("true", "true or false"),
    ("true", ""),
    strict=1,
    lenient=3,
    following=2,
)

SENTIMENT = labels(
    ("positive", "Positive."),  # strict
    ("neutral", "negative"),  # wrong, but in form
    ("negative", "The text is negative."),  # lenient
    ("positive", "Is it positive or negative?"),
    ("neutral", ""),
    strict=1,
    lenient=2,
    following=2,
)

POLITE = labels(
    ("yes", "Yes."),  # strict
    ("no", "yes"),  # wrong, but in form
    ("no", "No, it is not."),  # lenient
    ("yes", "Would you please open the window?"),  # the transcript
    ("yes", ""),
    strict=1,
    lenient=2,
    following=2,
)

QUESTION = labels(
    ("question", "Question."),  # strict
    ("statement", "question"),  # wrong, but in form
    ("question", "A question."),  # lenient
    ("statement", "Turn down the radio."),  # the transcript
    ("statement", ""),
    strict=1,
    lenient=2,
    following=2,
)

EMOTION = (
    [
        ("{'joy'}", "{'joy'}"),
        ("{'joy'}", "What a joy, we won!"),  # the transcript: lenient
        ("{'anger'}", "neutral"),
        ("{'neutral'}", "Neutral."),
        ("{'neutral'}", ""),
        ("{'sadness'}", "joy or sadness"),
    ],
    # Said in form: joy, -, neutral, neutral, -, -. Right: 2. F1 = 2 tp / (meant + said):
    # joy 2 * 1 / (2 + 1), anger 0 / (1 + 0), neutral 2 * 1 / (2 + 2), sadness 0 / (1 + 0); the others are not there.
    {
        "f1_micro": 100 * 2 * 2 / (6 + 3),
        "f1_macro": 100 * (2 / 3 + 0 + 1 / 2 + 0) / 4,
        "accuracy": 100 * 2 / 6,
        "accuracy_lenient": 100 * 3 / 6,
        FOLLOWING: 100 * 3 / 6,
    },
)

ANSWERS = (
    [
        ("Paris", "It is PARIS, of course."),
        ("Benjamin Franklin", "They called him Ben.", ["Ben", "Benny"]),  # another right answer
        ("the Beatles", "Beatles"),
        ("Rome", "It is Romeo."),  # part of a word
        ("Neil Armstrong", "Who was the first man on the moon?"),  # the question again
        ("Rome", "", ["Roma"]),
    ],
    {"answer_contained": 100 * 3 / 6},
)


def translation(tokenizer, *pairs):
    """Of the five responses, two are in the language, two are not (English and blank), and one is unknown."""
    references, responses = zip(*pairs, strict=True)
    bleu = sacrebleu.corpus_bleu(list(responses), [list(references)], tokenize=tokenizer).score
    return pairs, {"bleu": bleu, FOLLOWING: 100 * 2 / 4}


GERMAN = translation(
    "13a",
    ("Der Mann geht mit dem Hund in den Park.", "Der Mann geht mit dem Hund in den Park."),
    ("Sie ist nicht hier und die Tür ist offen.", "Sie ist nicht da, und die Tür ist offen."),
    ("Das Auto ist rot.", "The car is red, and that is all."),
    ("Bis dann.", ""),
    ("Um drei Uhr.", "3:00"),
)
SPANISH = translation(
    "13a",
    ("El hombre va al parque con su perro.", "El hombre va al parque con su perro."),
    ("Ella no lo espera y la puerta es grande.", "Ella lo espera y la puerta no es grande."),
    ("El coche es rojo.", "The car is red, and that is all."),
    ("Hasta luego.", ""),
    ("A las tres.", "3:00"),
)
FRENCH = translation(
    "13a",
    ("Il va au parc avec le chien.", "Il va au parc avec le chien."),
    ("Elle est dans la maison avec les enfants.", "Elle est dans une maison avec des enfants."),
    ("La voiture est rouge.", "The car is red, and that is all."),
    ("Bonne nuit.", ""),
    ("À trois heures.", "3:00"),
)
CHINESE = translation(
    "zh",
    ("男人带着狗去公园。", "男人带着狗去公园。"),
    ("她不在这里，门开着。", "她不在这里。"),
    ("汽车是红色的。", "The car is red, and that is all."),
    ("再见。", ""),
    ("三点。", "3:00"),
)

CASES = {
    "boolq": BOOLQ,
    "commands-capitals": CAPITALS,
    "commands-device": DEVICE,
    "commands-intent": COMMANDS_INTENT,
    "commands-keywords": KEYWORDS,
    "commands-place": PLACE,
    "commands-transcription": TRANSCRIPTION,
    "covost2-en-de": GERMAN,
    "covost2-en-zh": CHINESE,
    "fluent-speech-commands": INTENT,
    "french": FRENCH,
    "german": GERMAN,
    "librispeech-clean": TRANSCRIPTION,
    "librispeech-other": TRANSCRIPTION,
    "ljspeech": TRANSCRIPTION,
    "llama-questions": ANSWERS,
    "meld": EMOTION,
    "mustc-en-es": SPANISH,
    "mustc-en-fr": FRENCH,
    "politeness": POLITE,
    "question": QUESTION,
    "sentiment": SENTIMENT,
    "snips-lights": LIGHTS,
    "snips-washing": WASHING,
    "spanish": SPANISH,
    "web-questions": ANSWERS,
}
BY_MODEL = {"webglm-qa"}


def values(task, cases):
    keys = ("reference", "response", "alternatives")
    rows = [dict(zip(keys, case, strict=False)) for case in cases]
    return {name: metric.value for name, metric in score(Predictions(task, rows)).items()}


def test_every_built_in_task_has_a_test_case():
    assert {*CASES, *BY_MODEL} == set(builtin_tasks())


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_those_counted_by_hand(name):
    cases, expected = CASES[name]
    assert values(read_task(name), cases) == pytest.approx(expected)


def test_word_error_rate_equals_jiwer_after_whispers_normaliser():
    references, responses = zip(*TRANSCRIBED, strict=True)
    normalise = EnglishTextNormalizer()
    theirs = jiwer.wer([normalise(text) for text in references], [normalise(text) for text in responses])
    assert values(read_task("ljspeech"), TRANSCRIBED)["word_error_rate"] == pytest.approx(100 * theirs)


def test_repeating_the_speech_lowers_bleu_and_the_following_rate():
    """Repeating the speech in English lowers BLEU; the following rate distinguishes it from a bad translation."""
    cases, expected = GERMAN
    better = [(reference, reference) for reference, _ in cases]
    assert 0 < expected["bleu"] < values(read_task("covost2-en-de"), better)["bleu"] == pytest.approx(100)


def test_bert_score_equals_the_library(tiny_bert_folder, monkeypatch):
    from bert_score import BERTScorer

    cases = [
        ("Clouds cool down [1].", "Clouds cool down [1]."),
        ("It is night [2].", "It is dark at night."),
        ("Birds fly south in winter.", "why do birds fly"),  # the question again
        ("The sea is salty.", ""),
    ]
    said = [case for case in cases if case[1]]
    monkeypatch.chdir(tiny_bert_folder.parent)  # the library reads more than a name into a path
    theirs = BERTScorer(tiny_bert_folder.name, num_layers=1, device="cpu")
    theirs._tokenizer.model_max_length = 512
    _, _, f1 = theirs.score([response for _, response in said], [reference for reference, _ in said], batch_size=1)
    task = read_task("webglm-qa").model_copy(update={"bert_model": str(tiny_bert_folder), "bert_layer": 1})
    # A response that says nothing scores 0.
    assert values(task, cases) == {"bert_score": pytest.approx(100 * float(f1.sum()) / len(cases), abs=1e-3)}
