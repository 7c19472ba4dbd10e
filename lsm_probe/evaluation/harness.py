"""Runs a loaded checkpoint in lm-evaluation-harness: its LLM's answers to the questions of a task."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from lsm_probe.errors import InputError
from lsm_probe.evaluation.mmlu import not_installed
from lsm_probe.instruments.scoring import NOT_FINITE
from lsm_probe.memory import run_in_smaller_batches
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.rotary import depends_on_length
from lsm_probe.models.sparse_attention import find_exact_length


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Refuses an unsupported tokenizer before the texts are measured.

    Raises:
        InputError: the harness supports only transformers' own tokenizers, not mistral-common's (Voxtral).
    """
    if not isinstance(checkpoint.tokenizer, PreTrainedTokenizer | PreTrainedTokenizerFast):
        raise InputError(
            f"lm-evaluation-harness does not take the tokenizer of {checkpoint.name} "
            f"({type(checkpoint.tokenizer).__name__}): leave MMLU (--mmlu) out"
        )


class Harness:
    """Gives multiple-choice tasks to the LLM of a checkpoint, as the harness's own command does with `--model hf` and
    its defaults.

    Args:
        checkpoint: the checkpoint. An LSM's LLM is taken out; an audio LLM of another kind is used as a whole.
        folder: the folder of the tasks; the harness's own tasks are not used.
        shots: examples before each question.
        batch_size: questions run together; fewer if memory runs out, and one if positions or sparse attention depend on
            the batch.

    Raises:
        InputError: the harness is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path, *, shots: int, batch_size: int):
        try:
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise not_installed() from error
        self.name, self.shots = checkpoint.name, shots
        # The harness pads questions without giving positions. For models affected by this, questions run one by one.
        alone = depends_on_length(checkpoint.llm) or find_exact_length(checkpoint.llm.config.get_text_config())
        self.batch_size = 1 if alone else batch_size
        with _quiet():
            # A separate tokenizer, because the harness adds a padding token if there is none.
            self.lm = HFLM(pretrained=checkpoint.llm, tokenizer=deepcopy(checkpoint.tokenizer), backend="causal")
            self.tasks = TaskManager(include_path=str(folder), include_defaults=False)

    def run(self, task: str) -> list[dict[str, Any]]:
        """The harness's record of each question of a task, in order (its `samples`), with `chosen`, the number of the
        most likely answer, and `cut`, whether the beginning of its prompt was cut off to fit the context.

        Raises:
            InputError: log-probabilities are not finite, or a question does not fit into memory.
        """
        from lm_eval import evaluate

        def answer(batch_size: int) -> dict[str, Any]:
            self.lm.batch_size_per_gpu = batch_size
            loaded = self.tasks.load([task])
            loaded["tasks"][task].set_config("num_fewshot", self.shots)
            # Not `simple_evaluate`: it seeds all random generators, lists the machine's packages for each task, and
            # returns nothing to the second process of a machine.
            return dict(evaluate(self.lm, loaded, bootstrap_iters=0))

        with _quiet():
            questions = run_in_smaller_batches(answer, self.batch_size, f"a question of {task}")["samples"][task]
        for question in questions:
            likelihoods = np.array([likelihood for likelihood, _ in question["filtered_resps"]], dtype=np.float64)
            if not np.isfinite(likelihoods).all():
                raise InputError(f"{self.name}, question {question['doc_id']} of {task}: {NOT_FINITE}")
            context, answer_text = question["arguments"][0]
            cut = len(self.lm.tok_encode(context + answer_text)) > self.lm.max_length + 1
            question |= {"chosen": int(likelihoods.argmax()), "cut": cut}
        return list(questions)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the harness's own progress bars and messages from stderr, where ours are shown."""
    import datasets
    from tqdm import tqdm

    def no_bar(*items: Any, **options: Any) -> Any:
        return tqdm(*items, **{**options, "disable": True})

    modules = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with ExitStack() as patches:
            for module in modules:  # some of these bars have no option to disable them
                patches.enter_context(patch(f"{module}.tqdm", no_bar))
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
