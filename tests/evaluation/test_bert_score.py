"""BERTScore: compared with the equation in float64 and with the library; wrong settings are refused."""

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)

from lsm_probe.errors import InputError
from lsm_probe.evaluation.bert_score import bert_score, load_bert_scorer

WORDS = "the cat sat on a mat and she sells sea shells by shore it rains today hello went home early"
REFERENCES = [
    "The cat sat on the mat today",
    "she sells sea shells by the shore",
    "it rains",
    "he went home early",
    "hello",
    "a cat and a mat and a shore",
    "the sea",
    "it rains on the shore and on the sea and on the home early today",
    "sells",
]
RESPONSES = [
    "the cat sat on a mat",
    "She sells sea shells by the shore now and today",
    "today it rains a lot",
    "went",
    "home",
    "a mat and a cat",
    "the sea",
    "rains",
    # In this RoBERTa, a word of this text has a negative cosine with all words of its reference.
    "the cat sat on the mat today and she sells sea shells",
]
N = len(REFERENCES)
POSITIONS = 24
LAYERS = 3
SIZES = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}


def save_bert(folder: Path) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    tokens = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *WORDS.split()])
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    config = BertConfig(
        vocab_size=len(tokens), max_position_embeddings=POSITIONS, initializer_range=0.3, pad_token_id=0, **SIZES
    )
    return save(BertModel(config), tokenizer, folder)


def byte_tokenizer() -> RobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges, known = [], set(tokens)
    for word in WORDS.split():
        left = "Ġ"
        for letter in word:
            if left + letter not in known:
                merges.append((left, letter))
                tokens.append(left + letter)
                known.add(left + letter)
            left += letter
    vocab = {token: i for i, token in enumerate([*tokens, "<mask>"])}
    return RobertaTokenizer(vocab=vocab, merges=merges)


def save_roberta(folder: Path) -> Path:
    """Like `roberta-large`: with a head that is not used, and without the pooler."""
    tokenizer = byte_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS + 2, initializer_range=0.3, pad_token_id=1, **SIZES
    )
    return save(RobertaForMaskedLM(config), tokenizer, folder)


def save_bart(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=LAYERS,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=POSITIONS,
        init_std=0.3,
    )
    return save(BartModel(config), tokenizer, folder)


def save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("berts")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "bert": save_bert(root / "bert"),
            "roberta": save_roberta(root / "roberta"),
            "bart": save_bart(root / "bart"),
        }


@pytest.fixture
def bert(folders: dict[str, Path]) -> str:
    return str(folders["bert"])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        load_bert_scorer(*args, **kwargs)
    return str(error.value)


@torch.no_grad()
def by_the_equation(folder: Path, layer: int, tokenizer) -> np.ndarray:
    """Precision, recall, F1 of each sample: equations of section 3 of the paper, one pair at a time, in float64."""
    whole = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    model = whole.get_encoder() if whole.config.is_encoder_decoder else whole

    def directions(text):
        ids = tokenizer(text)["input_ids"]
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].numpy()
        words = [i for i, token in enumerate(ids) if token not in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
        return states / np.linalg.norm(states, axis=1, keepdims=True), words

    scores = []
    for reference, response in zip(REFERENCES, RESPONSES, strict=True):
        (meant, meant_words), (said, said_words) = directions(reference), directions(response)
        cosines = said @ meant.T
        precision, recall = cosines.max(1)[said_words].mean(), cosines.max(0)[meant_words].mean()
        scores.append([precision, recall, 2 * precision * recall / (precision + recall)])
    return np.array(scores)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize("kind", ["bert", "roberta", "bart"])
def test_scores_equal_the_equation_in_float64(folders, kind, layer):
    scorer = load_bert_scorer(str(folders[kind]), layer)
    metric = bert_score(REFERENCES, RESPONSES, scorer)
    expected = by_the_equation(folders[kind], layer, scorer.tokenizer)
    np.testing.assert_allclose(metric.counts[:, 0], expected[:, 2], atol=1e-5)
    assert metric.name == "bert_score"
    assert metric.value == pytest.approx(100 * expected[:, 2].mean(), abs=1e-3)
    assert metric.details["precision"] == pytest.approx(100 * expected[:, 0].mean(), abs=1e-3)
    assert metric.details["recall"] == pytest.approx(100 * expected[:, 1].mean(), abs=1e-3)


def test_scores_equal_those_of_the_library(bert, monkeypatch):
    from bert_score import BERTScorer

    monkeypatch.chdir(Path(bert).parent)
    theirs = BERTScorer("bert", num_layers=2, device="cpu")
    theirs._tokenizer.model_max_length = POSITIONS
    scorer = load_bert_scorer("bert", 2)
    metric = bert_score(REFERENCES, RESPONSES, scorer)
    precision, recall, f1 = (values.numpy() for values in theirs.score(RESPONSES, REFERENCES, batch_size=1))
    np.testing.assert_allclose(metric.counts[:, 0], f1, atol=1e-5)
    assert metric.details["precision"] == pytest.approx(100 * precision.mean(), abs=1e-3)
    assert metric.details["recall"] == pytest.approx(100 * recall.mean(), abs=1e-3)
    assert metric.details["library"] == theirs.hash


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_scores_do_not_depend_on_batch_size_or_order(folders, kind):
    scorer = load_bert_scorer(str(folders[kind]), 2)
    references, responses = [*REFERENCES, "the cat"], [*RESPONSES, " "]
    alone = bert_score(references, responses, scorer, batch_size=1)
    together = bert_score(references, responses, scorer, batch_size=8)
    order = np.random.default_rng(0).permutation(len(references))
    shuffled = bert_score([references[i] for i in order], [responses[i] for i in order], scorer, batch_size=8)
    np.testing.assert_allclose(together.counts, alone.counts, atol=1e-5)
    np.testing.assert_allclose(shuffled.counts, alone.counts[order], atol=1e-5)
    assert len(set(alone.counts[:, 0].round(3))) > 5


def test_equal_texts_score_100(bert):
    assert bert_score(REFERENCES, REFERENCES, load_bert_scorer(bert, 2)).value == pytest.approx(100, abs=1e-3)


def test_blank_texts_score_zero_without_output_on_stderr(bert, capfd):
    scorer = load_bert_scorer(bert, 2)
    capfd.readouterr()
    plain = bert_score(REFERENCES, RESPONSES, scorer)
    # The zero-width space is not white space in Python, and not a token for BERT.
    metric = bert_score([*REFERENCES, "the", " ", "\n", "sea"], [*RESPONSES, "", "cat", "\t", "\u200b"], scorer)
    assert capfd.readouterr().err == ""
    np.testing.assert_allclose(metric.counts[:N], plain.counts, atol=1e-5)
    assert metric.counts[N:].tolist() == [[0, 1]] * 4
    assert (metric.n, metric.details["empty_references"], metric.details["empty_responses"]) == (N + 4, 2, 3)
    assert metric.value == pytest.approx(plain.value * N / (N + 4))
    assert bert_score([""], [""], scorer).value == 0


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_long_texts_are_cut_to_the_models_positions(folders, kind):
    """The tokenizers state no limit, so the library fails; RoBERTa's positions begin at 2."""
    scorer = load_bert_scorer(str(folders[kind]), 2)
    fits = " ".join(["cat"] * (POSITIONS - 2))
    uncut, cut = (bert_score([text], ["the cat"], scorer) for text in (fits, f"{fits} sea" * 9))
    assert (uncut.details["cut"], cut.details["cut"]) == (0, 1)
    assert cut.value == pytest.approx(uncut.value, abs=1e-3)


def test_the_score_is_the_mean_over_samples_also_in_resamples(bert):
    metric = bert_score(REFERENCES, RESPONSES, load_bert_scorer(bert, 2))
    assert metric.counts.shape == (N, 2)
    assert metric.value == pytest.approx(100 * metric.counts[:, 0].mean())
    left_out = metric.leave_one_out([f"u{i}" for i in range(N)])
    assert left_out.min() < metric.value < left_out.max()
    score = metric.estimate([f"u{i}" for i in range(N)])
    assert score.ci_low < score.value < score.ci_high
    json.dumps(score.to_dict())


def test_details_name_model_layer_and_weights(bert):
    details = bert_score(REFERENCES, RESPONSES, load_bert_scorer(bert, 2)).details
    weights = hashlib.sha256((Path(bert) / "model.safetensors").read_bytes()).hexdigest()
    assert details["weights_sha256"] == {"model.safetensors": weights}
    settings = {key: details[key] for key in ("model", "model_type", "layer", "idf", "rescale", "cut")}
    assert settings == {"model": bert, "model_type": "bert", "layer": 2, "idf": False, "rescale": False, "cut": 0}
    assert f"{bert}_L2_no-idf_version=" in details["library"]


def test_a_folder_named_t5_is_loaded_by_its_content(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "t5")
    value, other = (bert_score(REFERENCES, RESPONSES, load_bert_scorer(str(name), 2)).value for name in (bert, folder))
    assert value == pytest.approx(other)


def test_roberta_tokenises_the_first_word_like_any_other(folders):
    scorer = load_bert_scorer(str(folders["roberta"]), 2)
    assert scorer.tokenizer.tokenize("cat cat") == ["Ġcat", "Ġcat"]


def test_weights_in_a_bin_file_are_read_and_hashed(folders, tmp_path):
    folder = shutil.copytree(folders["bert"], tmp_path / "bin")
    (folder / "model.safetensors").unlink()
    torch.save(BertModel.from_pretrained(folders["bert"]).state_dict(), folder / "pytorch_model.bin")
    scorer = load_bert_scorer(str(folder), 2)
    plain = bert_score(REFERENCES, RESPONSES, load_bert_scorer(str(folders["bert"]), 2))
    assert bert_score(REFERENCES, RESPONSES, scorer).value == pytest.approx(plain.value)
    weights = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    assert scorer.identity["weights_sha256"] == {"pytorch_model.bin": weights}


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_nothing_is_unpickled(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(folders["bert"], tmp_path / "bomb")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert "cannot be loaded" in refusal(str(folder), 2)
    assert not Path("exploded").exists()


class TestRefusals:
    def test_a_hub_name_offline(self):
        assert "roberta-large cannot be loaded" in refusal("roberta-large")

    def test_no_such_folder(self, tmp_path):
        assert "cannot be loaded" in refusal(str(tmp_path / "none"), 2)

    def test_the_layer_of_an_unknown_model_must_be_given(self, bert):
        line = refusal(bert)
        assert bert in line
        assert "give one of its 3 layers" in line

    @pytest.mark.parametrize("layer", [-1, LAYERS + 1])
    def test_a_layer_that_the_model_lacks(self, bert, layer):
        assert f"no layer {layer}" in refusal(bert, layer)

    def test_a_model_without_special_tokens_around_a_text(self, tiny_llm_folder):
        assert "[CLS]" in refusal(str(tiny_llm_folder), 2)

    def test_weights_that_lack_a_layer(self, bert, tmp_path):
        folder = shutil.copytree(bert, tmp_path / "short")
        config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 5}
        (folder / "config.json").write_text(json.dumps(config))
        assert "lack" in refusal(str(folder), 5)

    def test_the_library_is_missing(self, bert, monkeypatch):
        monkeypatch.setitem(sys.modules, "bert_score", None)
        monkeypatch.setitem(sys.modules, "bert_score.utils", None)
        assert "bert-score>=" in refusal(bert, 2).partition("pip install")[2]

    def test_lists_of_different_lengths(self, bert):
        with pytest.raises(InputError, match="1 references and 2 responses do not match"):
            bert_score(["a"], ["a", "b"], load_bert_scorer(bert, 2))
