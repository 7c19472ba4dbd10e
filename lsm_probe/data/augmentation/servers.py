"""Servers for generation at scale: a vLLM that datatrove starts, or a server that is already running."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.errors import InputError
from lsm_probe.extras import install_command
from lsm_probe.models.prompter import Prompter

IN_FLIGHT = 256
"""Concurrent requests; equal to vLLM's default for the number of sequences in a batch."""

_HERE = ("localhost", "127.0.0.1", "::1")
_REQUEST_TIMEOUT = 120.0
"""Timeout in seconds for a server's first answer; some servers load the model only then."""


@dataclass(frozen=True)
class Server:
    """The destination of prompts."""

    url: str | None  # of a running OpenAI-compatible server; None: datatrove starts vLLM
    model: str  # the server's name for the LLM
    dtype: str = "auto"  # of the weights, for a vLLM started here

    def to_dict(self) -> dict[str, Any]:
        """The settings that affect the responses, as plain values, for the output folder's config."""
        if self.url is not None:
            return {"server": "endpoint", "model": self.model}
        # Without batch invariance, responses depend on which prompts were batched together.
        invariant = os.environ.get("VLLM_BATCH_INVARIANT")
        return {"server": "vllm", "vllm": version("vllm"), "dtype": self.dtype, "VLLM_BATCH_INVARIANT": invariant}

    def inference(self, llm: Prompter, recipe: Recipe, *, in_flight: int, log_folder: str) -> dict[str, Any]:
        """Arguments of datatrove's `InferenceConfig`."""
        common = {
            "model_name_or_path": self.model,
            "model_max_context": recipe.max_prompt_tokens + recipe.max_new_tokens,
            "use_chat": False,
            "max_concurrent_generations": in_flight,
        }
        if self.url is not None:
            # The server has just answered, so the 25 minutes that a start may take are not needed.
            readiness = {"server_ready_max_attempts": 10, "server_ready_delay_sec": 1.0, "server_start_max_retries": 0}
            return {"server_type": "endpoint", "endpoint_url": self.url, **readiness, **common}
        options = {
            "dtype": self.dtype,
            # vLLM would take settings such as repetition penalties from the checkpoint; the in-process engine does not.
            "generation-config": "vllm",
            # datatrove requires this setting; code from a checkpoint is never run.
            "trust-remote-code": False,
        }
        if llm.identity.revision is not None:
            options["revision"] = llm.identity.revision
        return {"server_type": "vllm", "model_kwargs": options, "server_log_folder": log_folder, **common}


def find_server(choice: str, llm: Prompter, *, dtype: str = "auto") -> Server:
    """The server that `--server` names, tested with one prompt if it is running.

    The `choice` is `vllm`, or the URL of a server on this machine; `dtype` is of a vLLM's weights.

    Raises:
        InputError: `choice` is neither, vLLM is not installed, or the server does not answer prompts of token ids.
    """
    if choice == "vllm":
        try:
            version("vllm")
        except PackageNotFoundError:
            raise InputError(f"--server vllm needs vLLM, which is not installed: {install_command('vllm')}") from None
        if shutil.which("vllm") is None:
            raise InputError("--server vllm needs the command `vllm` on the PATH: activate its environment")
        return Server(None, llm.folder, dtype)
    url = _checked_url(choice)
    if dtype != "auto":
        raise InputError("--dtype is for a vLLM started here; a running server has its own dtype: leave the option out")
    model = _served_model(url, llm)
    _try_out(url, model, llm)
    return Server(url, model)


def _checked_url(choice: str) -> str:
    try:
        parts = urlsplit(choice)
        there, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"--server {choice!r} is not a URL ({error}): give `vllm` or http://localhost:8000") from None
    if parts.scheme not in ("http", "https") or not there:
        raise InputError(f"--server {choice!r} is neither `vllm` nor a URL such as http://localhost:8000")
    if parts.scheme != "http" or there not in _HERE:
        # datatrove reaches other servers with a client whose paths do not match its own readiness check.
        raise InputError(
            f"--server {choice}: only http://localhost:PORT is reached; forward the other machine's port with "
            "`ssh -N -L 8000:localhost:8000 MACHINE`"
        )
    path = parts.path.rstrip("/")
    if path not in ("", "/v1"):
        raise InputError(f"--server {choice}: leave out {path!r}; the command adds /v1/completions itself")
    return f"http://{parts.netloc}"


def _served_model(url: str, llm: Prompter) -> str:
    names = [entry["id"] for entry in _ask(f"{url}/v1/models")["data"] if isinstance(entry, dict) and "id" in entry]
    for name in (llm.name, llm.folder):
        if name in names:
            return name
    if len(names) != 1:
        raise InputError(
            f"--server {url} serves {', '.join(names) or 'no model'}, not {llm.name}: start it with the --llm given"
        )
    return str(names[0])


def _try_out(url: str, model: str, llm: Prompter) -> None:
    """Requests one token for one prompt, so that a wrong kind of server is found before the work starts."""
    prompt = llm.encode("Continue.", "The sun")
    reply = _ask(f"{url}/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0})
    usage = reply.get("usage") or {}
    if usage.get("prompt_tokens") != len(prompt) or "completion_tokens" not in usage:
        raise InputError(
            f"--server {url} reports the usage {usage} for a prompt of {len(prompt)} token ids: "
            "it changes the prompt or does not count tokens; use another server, such as vLLM"
        )


def _ask(url: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST of a payload; the JSON object that comes back."""
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for this machine
    try:
        with opener.open(request, timeout=_REQUEST_TIMEOUT) as reply:
            answer = json.loads(reply.read())
        if not isinstance(answer, dict) or not isinstance(answer["data" if body is None else "choices"], list):
            raise KeyError
    except urllib.error.HTTPError as error:
        detail = " ".join(error.read().decode(errors="replace").split())[:200]
        what = "" if body is None else " to a prompt of token ids, which it has to take"
        raise InputError(f"{url} answers {error.code}{what}: {detail}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"no server at {url} ({reason}): start one, or check --server") from None
    except (ValueError, KeyError):
        raise InputError(f"{url} does not answer as an OpenAI-compatible server does: check --server") from None
    return answer
