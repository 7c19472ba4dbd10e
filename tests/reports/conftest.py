"""Results to report, planted and measured, and a headless Chromium.

Chromium is spoken to over its debugging pipe: no driver, no port.
"""

import base64
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

import lsm_probe
from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.pools import Pool, Task
from lsm_probe.data.sample import Sample
from lsm_probe.evaluation import EVALUATION
from lsm_probe.evaluation.task import Task as EvaluationTask
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.registry import PROBES
from lsm_probe.runner.identity import CheckpointIdentity, Control
from lsm_probe.runner.run import run_measurement

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


class Browser:
    """One page of a Chromium (the Chrome DevTools Protocol, messages ending in a zero byte).

    Attributes:
        problems: exceptions, console errors and refused loads so far, of the page and of its frames.
    """

    def __init__(self, profile: Path):
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        # Chromium reads from 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{there} 4>&{back}'
        options = [*_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        with Path(profile, "log").open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command, CHROMIUM, *options], pass_fds=(there, back), stdout=log, stderr=log
            )
        os.close(there)
        os.close(back)
        self._rest, self._count, self._session = b"", 0, None
        self.problems: list[str] = []
        self._events: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        # A sandboxed frame may run in a process of its own, and then has a session of its own.
        self("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)

    def __call__(self, method, **params):
        """Sends a command and gives its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, page, *, width=1200, height=900, dark=False, javascript=True):
        """Loads a file and waits until everything in it is there."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=scheme)
        self("Emulation.setScriptExecutionDisabled", value=not javascript)
        self._events.clear()
        self("Page.navigate", url=Path(page).resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def run(self, script):
        """The value of an expression in the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point(self, x, y):
        """Moves the mouse there."""
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector):
        """Scrolls an element into view and clicks its middle."""
        place = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        self.run(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})"
        )
        x, y = self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({place})")
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path, *, whole=True):
        """Of the whole page, or of what is in view."""
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path):
        content = self("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        Path(path).write_bytes(base64.b64decode(content["data"]))

    def close(self):
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def _receive(self):
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], 60)[0], "Chromium says nothing"
            got = os.read(self._in, 1 << 20)
            assert got, "Chromium has ended"
            self._rest += got
        message, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self._note(answer["method"], answer["params"])
        return answer

    def _note(self, event, params):
        self._events.append(event)
        if event == "Target.attachedToTarget":
            for domain in ("Runtime", "Log"):
                self._count += 1
                message = {"id": self._count, "method": f"{domain}.enable", "sessionId": params["sessionId"]}
                os.write(self._out, json.dumps(message).encode() + b"\0")
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        if event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        if event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str(params["args"]))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def planted():
    """`planted(name, eta, ...)`: an attention result whose eta is about that in all layers, under all conventions.

    With `template` another eta where the template counts as instruction.
    """

    def make(
        name,
        eta,
        *,
        source="speech",
        control=False,
        tokens=1,
        template=0.0,
        noise=0.02,
        n=12,
        layers=12,
        seed=0,
        **more,
    ):
        rng = np.random.default_rng([seed, *name.encode()])
        own = np.clip(eta + rng.normal(0, noise, (n, layers)), 0.01, 0.99)
        norms = np.zeros((n, layers, 5))
        norms[..., 2], norms[..., 3], norms[..., 1] = own, (1 - own) * tokens, template
        llm, _, speech = name.partition(" at length of ")
        counts = np.tile([0, 1 if template else 0, 1, tokens, 0], (n, 1))
        return AttentionResult(
            norms=norms.astype(np.float32),
            head_norms=norms[:, :, None].astype(np.float32),
            tokens=counts,
            rows=np.ones(n, dtype=np.int64),
            clusters=np.arange(n),
            samples=[
                {"id": f"s{i}", "task": None, "instruction": f"Do {i}.", "response": f"{name} {i}", "response_ids": [i]}
                for i in range(n)
            ],
            checkpoint=CheckpointIdentity(
                name=name,
                source=source,
                template="chat",
                dtype="float32",
                control=Control(llm, (speech,)) if control else None,
                model=ModelIdentity.from_dict(more),
            ),
            data=DataIdentity("planted.jsonl", "ab" * 32, n),
            conventions=Conventions(),
            self_check={"median": 1e-7, "worst": 1e-6, "median_bound": 1e-5, "worst_bound": 1e-5},
        )

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory, waveform, tiny_lsm_folder, tiny_llm_folder):
    """A folder in which every probe, an evaluation and a timeline have written what they measured of tiny models."""
    out = tmp_path_factory.mktemp("runs")
    samples, texts = (
        [],
        ["the quick brown fox", "rain falls softly", "green", "she sells sea shells", "nobody knows", "the old town"],
    )
    for i, text in enumerate(texts):
        path = out / f"{i}.wav"
        soundfile.write(path, waveform(0.5 + 0.3 * i, seed=i), 16_000)
        one = {"id": f"s{i}", "audio": path, "text": text, "target": text, "task": "said", "language": "en"}
        samples.append(Sample(instruction="Write down <b>what</b> is said.", **one))
    pool = Pool(
        tasks=[Task(task="said", instructions=["Write."]), Task(task="count", instructions=["Count the words."])]
    )
    task = EvaluationTask(name="said", title="Said", metrics=("word_error_rate",))
    from lsm_probe.runner.named_checkpoints import (
        named_checkpoint,  # imports torch, which the other fixtures do without
    )

    both, quick = [str(tiny_llm_folder), str(tiny_lsm_folder)], {"max_new_tokens": 4}
    probes = {
        "attention": (both, quick),
        "sensitivity": (both, {**quick, "instructions": pool}),
        "knockout": (both, {**quick, "window": 1, "single_heads": True}),
        "alignment": (both[1:], {"perplexity": 2.0}),
        "importance": (both, {}),
        "evaluate": (both, {**quick, "tasks": [task]}),
    }
    loading = {"device": "cpu", "dtype": "float32"}
    for name, (names, options) in probes.items():
        measurement = EVALUATION if name == "evaluate" else PROBES[name]
        checkpoints = [named_checkpoint(each, loading) for each in names]
        run_measurement(measurement, checkpoints, samples, out / name, options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsm_probe.probes.timeline.measure.word_times", lambda wave, text: [])
        from lsm_probe.probes.timeline.page import save_page

        timeline = lsm_probe.timeline(lsm_probe.load(tiny_lsm_folder), samples[3], max_new_tokens=4)
        timeline.save(out / "timeline")
        save_page(timeline, out / "timeline")
    return out
