"""From predictions to metrics: parses each response as its task defines, and counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import regex

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation import metrics
from lsm_probe.evaluation.answers import Answer
from lsm_probe.evaluation.metrics import Metric
from lsm_probe.evaluation.task import Task

if TYPE_CHECKING:
    from lsm_probe.evaluation.bert_score import BertScorer

FOLLOWING = "following_rate"
MOST_CHARACTERS = 100_000
"""Maximum length of a scored text: two hours of speech. Ten times as many would take minutes in some metrics."""
_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
"""More combining marks than any letter of a text has (Unicode Standard Annex 15); sorting them takes quadratic time."""


@dataclass(frozen=True)
class Predictions:
    """One checkpoint's responses in one task.

    Rows are those of `samples.jsonl`: `id`, `reference` (and perhaps `alternatives` and `language`) and `response` of
    each sample; where the response begins with thinking also the `answer`.
    """

    task: Task
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def references(self) -> list[str]:
        return [truncate(row["reference"]) for row in self.rows]

    @cached_property
    def responses(self) -> list[str]:
        return [truncate(text) for text in self._read]

    @cached_property
    def _read(self) -> list[str]:
        """The scored part of the responses; a response with unfinished thinking counts as empty."""
        if self.task.read == "all":
            return [row["response"] for row in self.rows]
        return [row.get("answer", row["response"]) or "" for row in self.rows]

    @cached_property
    def languages(self) -> list[str | None]:
        """Languages of references and responses: the task's language, or else that of each sample's speech."""
        return [self.task.language or row.get("language") for row in self.rows]

    @cached_property
    def ids(self) -> list[str]:
        """Names of the samples in warnings: ids, or else numbers."""
        return [row.get("id", f"number {i} (from 0)") for i, row in enumerate(self.rows)]

    @cached_property
    def truncated_ids(self) -> list[str]:
        """Ids of the samples whose reference or response is scored only in part; see [`truncate`]."""
        scored = zip(self.ids, self.rows, self._read, self.references, self.responses, strict=True)
        return [name for name, row, read, *texts in scored if texts != [row["reference"], read]]

    @cached_property
    def answers(self) -> list[Answer]:
        """The parsed responses."""
        return [self.task.parser()(response) for response in self.responses]

    @cached_property
    def meant(self) -> list[Any]:
        """The parsed references."""
        parse = self.task.parser()
        return [parse(reference).value for reference in self.references]

    @property
    def strict(self) -> list[Any]:
        """Values of the responses in the requested format, else None: a model that only repeats the speech often gives
        the right label without following the instruction."""
        return [answer.value if answer.follows else None for answer in self.answers]


def truncate(text: str) -> str:
    """The part of a text that is scored: no more than 30 combining marks in a row, and 100,000 characters."""
    return _MANY_MARKS.sub(r"\1", text)[:MOST_CHARACTERS]


def check(tasks: Sequence[Task], samples: Sequence[Sample]) -> None:
    """Refuses problems at the start that would otherwise appear only after hours of generating.

    Raises:
        InputError: a sample belongs to none of the tasks, a task has no samples, its task cannot parse a target, or the
            model of a metric is not available.
    """
    task_of = {task.name: task for task in tasks}
    for sample in samples:
        if sample.task not in task_of:
            raise InputError(f"sample {sample.id} is of task {sample.task!r}; there are: {', '.join(task_of)}")
    for task in tasks:
        parse = task.parser()
        own = [sample for sample in samples if sample.task == task.name]
        if not own:
            raise InputError(f"task {task.name} has no samples; give it some, or leave it out")
        for sample in own:
            if sample.target is not None and parse(sample.target).value is None:
                raise InputError(
                    f"sample {sample.id}: its target {sample.target!r} is not an answer to its task; correct it"
                )
        target = own[0].target or ""
        row = {"id": own[0].id, "language": own[0].language, "reference": target, "response": target}
        with warnings.catch_warnings(action="ignore"):  # warnings come later, when all samples are scored
            score(Predictions(task, [row]))  # checks that the metrics work


def score(predictions: Predictions) -> dict[str, Metric]:
    """All metrics of a task by name, in its order, and the share of responses in the requested format.

    Raises:
        InputError: the model of a metric is not available, or a sample's language is unknown.

    Warns:
        UserWarning: texts are so long that only a part is scored; also the warnings of the metrics.
    """
    task = predictions.task
    if names := predictions.truncated_ids:
        warnings.warn(
            f"task {task.name}: of {len(names)} samples (first: {names[0]}) a text is too long to be scored whole: the "
            f"first {MOST_CHARACTERS:,} characters count, and of combining marks 30 in a row",
            stacklevel=2,
        )
    found: dict[str, Metric] = {name: replace(_METRICS[name](predictions), name=name) for name in task.metrics}
    if task.has_form:
        found[FOLLOWING] = metrics.following_rate([answer.follows for answer in predictions.answers])
    return found


def _word_error_rate(p: Predictions, *, macro: bool = False) -> Metric:
    return metrics.word_error_rate(p.references, p.responses, p.languages, macro=macro, ids=p.ids)


def _f1(p: Predictions, average: str) -> Metric:
    return metrics.f1(p.meant, p.strict, p.task.labels, average=average)


def _contained(p: Predictions) -> Metric:
    answers = [[row["reference"], *row.get("alternatives", [])] for row in p.rows]
    return metrics.answer_contained(answers, p.responses)


def _bert(p: Predictions) -> Metric:
    scorer = _bert_scorer(p.task.bert_model, p.task.bert_layer)
    return _bert_score(tuple(p.references), tuple(p.responses), scorer)


@cache
def _bert_scorer(model: str, layer: int | None) -> BertScorer:
    from lsm_probe.evaluation.bert_score import load_bert_scorer  # imports torch, which no other metric needs

    return load_bert_scorer(model, layer)


@lru_cache(maxsize=64)
def _bert_score(references: tuple[str, ...], responses: tuple[str, ...], scorer: BertScorer) -> Metric:
    """Cached, because results request it again for comparing and writing."""
    from lsm_probe.evaluation.bert_score import bert_score

    return bert_score(references, responses, scorer)


_METRICS: dict[str, Callable[[Predictions], Metric]] = {
    "word_error_rate": _word_error_rate,
    "word_error_rate_macro": lambda p: _word_error_rate(p, macro=True),
    "bleu": lambda p: metrics.bleu(p.references, p.responses, str(p.task.language)),
    "accuracy": lambda p: metrics.accuracy(p.meant, p.strict),
    "accuracy_lenient": lambda p: metrics.accuracy(p.meant, [answer.value for answer in p.answers]),
    "f1_micro": lambda p: _f1(p, "micro"),
    "f1_macro": lambda p: _f1(p, "macro"),
    "answer_contained": _contained,
    "bert_score": _bert,
}
