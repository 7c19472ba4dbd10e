"""A checkpoint has one colour, marker and short name, whichever others it is shown with."""

from lsm_probe.runner.identity import CheckpointIdentity, Control
from lsm_probe.runner.looks import COLORS, NEUTRAL, looks_of, same_looks, short_names


def speech(*names):
    return [CheckpointIdentity(name=name, source="speech", template="chat", dtype="float32") for name in names]


def text(name, **more):
    return CheckpointIdentity(name=name, source="text", template="chat", dtype="float32", **more)


def test_the_arms_of_the_study_look_alike_under_all_their_names():
    for names in (("builtin:vanilla_asr", "builtin:self_powered"), ("vanilla_asr-0", "self_powered-0")):
        looks = looks_of(speech("first", *names))
        assert [looks[name].color for name in names] == [COLORS[1], COLORS[4]]
        assert looks["first"].color == COLORS[0]


def test_each_checkpoint_has_a_distinct_look():
    looks = looks_of(speech("builtin:vanilla_asr", "vanilla_asr", *(f"run {i}" for i in range(18))))
    assert len(set(looks.values())) == 20


def test_the_first_text_llm_is_grey_and_a_control_looks_like_the_checkpoint_it_is_for():
    control = Control("llm", ("two", "one"))
    looks = looks_of([*speech("one", "two"), text("llm"), text("other llm"), text(control.name, control=control)])
    assert looks["llm"] == NEUTRAL != looks["other llm"]
    assert looks[control.name] == looks["two"] != looks["one"]


def test_names_are_the_ends_of_paths_in_controls_and_cascades_too():
    control, cascade = Control("/models/llm/model", ("/runs/a/model",)), ("/models/whisper", "/models/llm/model")
    checkpoints = [*speech("/runs/a/model", "/runs/b/model"), text(control.name, control=control)]
    checkpoints.append(text(" + ".join(cascade), cascade_of=cascade))
    assert short_names(checkpoints) == ["a", "b", "llm at length of a", "whisper + llm"]


def test_looks_are_fixed_only_within_the_block():
    with same_looks(speech("one", "two")) as looks:
        assert looks["two"].color == COLORS[1]
    assert looks_of(speech("two"))["two"].color == COLORS[0]
