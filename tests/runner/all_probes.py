"""Run by `torchrun`, and by the tests in a single process: every probe once, and what is needed to resume a run.

Arguments: the LSM's folder, the manifest, the output folder. Each process writes into its own folder there: the
result of each probe, and `report.json`. There, `begun` is the progress of an earlier run, `taken` another result,
and `damaged.wav` an invalid audio file.
"""

import json
import os
import sys
import time
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import torch

import lsm_probe
from lsm_probe import distributed
from lsm_probe.data.manifest import read_manifest
from lsm_probe.errors import InputError
from lsm_probe.evaluation.task import Task
from lsm_probe.probes.registry import PROBES
from lsm_probe.runner import measurement_run as sampling
from lsm_probe.runner import prepared_samples as items
from lsm_probe.runner.named_checkpoints import named_checkpoint
from lsm_probe.runner.run import run_measurement

QUICK = {"max_new_tokens": 6, "batch_size": 2}
TASK = Task(name="said", title="Said", metrics=("word_error_rate",))


def evaluation(checkpoint, samples, **options):
    """The only result that contains times; here the clock stands still."""
    with patch.object(items, "perf_counter", lambda: 0.0):
        asked = [sample.model_copy(update={"task": TASK.name}) for sample in samples]
        return lsm_probe.evaluate(checkpoint, asked, tasks=[TASK], **options)


def half_precision(checkpoint, samples, **options):
    """A copy in float16, compared with float32."""
    copied = lsm_probe.from_model(deepcopy(checkpoint.model).half(), checkpoint.processor, name="half")
    return lsm_probe.attention(copied, samples, **options)


RUNS = {
    "attention": (lsm_probe.attention, {**QUICK, "tokens": True}),
    "sensitivity": (lsm_probe.sensitivity, {**QUICK, "response": "reference"}),
    "knockout": (lsm_probe.knockout, {**QUICK, "window": 1}),
    "alignment": (lsm_probe.alignment, {**QUICK, "perplexity": 2.0}),
    "importance": (lsm_probe.importance, {**QUICK, "masks": 0.05, "ablate": 0.1}),
    "signed": (lsm_probe.importance, {**QUICK, "mode": "signed"}),
    "evaluation": (evaluation, QUICK),
    "half": (half_precision, {**QUICK, "verify_precision": 4}),
}


def run(lsm, manifest, out, report):
    """Runs everything; `report` gets the progress of each probe and whether its weights changed."""
    samples = read_manifest(manifest)
    checkpoint = lsm_probe.load(lsm, device="cpu", dtype="float32")
    before = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
    report["done"] = {}
    for name, (probe, options) in RUNS.items():
        done = report["done"][name] = []
        probe(checkpoint, samples, on_progress=done.append, **options).save(out / name)
    weights = checkpoint.model.state_dict()
    report["changed"] = [name for name, weight in before.items() if not weight.equal(weights[name])]


@contextmanager
def record_prepared():
    """Records the ids of the samples that this process begins with inside the block."""
    begun, prepare = [], sampling.prepare

    def record(checkpoint, batch, *others):
        begun.extend(sample.id for sample in batch)
        return prepare(checkpoint, batch, *others)

    sampling.prepare = record
    try:
        yield begun
    finally:
        sampling.prepare = prepare


def resume(lsm, manifest, progress):
    """Attention with its progress folder. Returns the result and the ids that had to be measured."""
    checkpoint = lsm_probe.load(lsm, device="cpu", dtype="float32")
    with record_prepared() as measured:
        result = lsm_probe.attention(checkpoint, read_manifest(manifest), progress_folder=progress, **QUICK)
    return result, measured


def in_folder(lsm, manifest, out):
    """Attention with its folder, in which the main process writes."""
    checkpoints = [named_checkpoint(str(lsm), {"device": "cpu", "dtype": "float32"})]
    run_measurement(PROBES["attention"], checkpoints, read_manifest(manifest), out, options=QUICK)


def refusal(run, *arguments):
    """The line with which a run is refused."""
    try:
        run(*arguments)
    except InputError as error:
        return str(error)
    return None


def with_damage(lsm, manifest, damaged):
    """Attention on samples of which `s3` has a damaged audio file. After a batch, waits until another process fails."""

    def wait(done):
        deadline = time.monotonic() + 60
        while not distributed._gloo().has_failed() and time.monotonic() < deadline:
            time.sleep(0.05)

    checkpoint = lsm_probe.load(lsm, device="cpu", dtype="float32")
    samples = [s.model_copy(update={"audio": damaged}) if s.id == "s3" else s for s in read_manifest(manifest)]
    lsm_probe.attention(checkpoint, samples, on_progress=wait, **QUICK)


def main():
    lsm, manifest, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    report = {}
    run(lsm, manifest, out / str(rank), report)
    result, report["measured"] = resume(lsm, manifest, out / "begun")
    result.save(out / str(rank) / "resumed")
    in_folder(lsm, manifest, out / str(rank) / "folder")
    with record_prepared() as report["begun"]:
        report["refused"] = refusal(with_damage, lsm, manifest, out / "damaged.wav")
    report["taken"] = refusal(in_folder, lsm, manifest, out / "taken")
    report["after"] = distributed.all_gather_or_raise(rank)
    (out / str(rank) / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
