"""A checkpoint has one colour, marker and short name in all figures that are shown together."""

from lsm_probe.runner.checkpoint_styles import COLORS, NEUTRAL, assign_styles, shared_styles, short_names
from lsm_probe.runner.identity import CheckpointIdentity, Control


def speech(*names):
    return [CheckpointIdentity(name=name, source="speech", template="chat", dtype="float32") for name in names]


def text(name, **more):
    return CheckpointIdentity(name=name, source="text", template="chat", dtype="float32", **more)


def test_study_arms_have_the_same_colours_under_all_their_names():
    for names in (
        ("builtin:vanilla_asr", "builtin:self_powered"),
        ("builtin:open_vanilla_asr", "builtin:open_self_powered"),
        ("vanilla_asr-0", "self_powered-0"),
    ):
        styles = assign_styles(speech("first", *names))
        assert [styles[name].color for name in names] == [COLORS[1], COLORS[4]]
        assert styles["first"].color == COLORS[0]


def test_all_seeds_of_a_study_arm_have_its_colour_and_different_markers():
    styles = assign_styles(speech(*(f"vanilla_asr-{seed}" for seed in range(3))))
    assert {style.color for style in styles.values()} == {COLORS[1]}
    assert len({style.marker for style in styles.values()}) == 3


def test_each_checkpoint_has_a_distinct_style():
    styles = assign_styles(speech("builtin:vanilla_asr", "vanilla_asr", *(f"run {i}" for i in range(18))))
    assert len(set(styles.values())) == 20


def test_the_first_text_llm_is_grey_and_a_control_has_the_style_of_its_checkpoint():
    control = Control("llm", ("two", "one"))
    styles = assign_styles([*speech("one", "two"), text("llm"), text("other llm"), text(control.name, control=control)])
    assert styles["llm"] == NEUTRAL != styles["other llm"]
    assert styles[control.name] == styles["two"] != styles["one"]


def test_short_names_cut_the_paths_of_controls_and_cascades():
    control, cascade = Control("/models/llm/model", ("/runs/a/model",)), ("/models/whisper", "/models/llm/model")
    checkpoints = [*speech("/runs/a/model", "/runs/b/model"), text(control.name, control=control)]
    checkpoints.append(text(" + ".join(cascade), cascade_of=cascade))
    assert short_names(checkpoints) == ["a", "b", "llm at length of a", "whisper + llm"]


def test_styles_are_shared_only_within_the_block():
    with shared_styles(speech("one", "two")) as styles:
        assert styles["two"].color == COLORS[1]
    assert assign_styles(speech("two"))["two"].color == COLORS[0]
