"""Where models go: devices by name, by process, and by a quantiser of transformers."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import lsm_probe
from lsm_probe.distributed import init_distributed
from lsm_probe.errors import InputError
from lsm_probe.evaluation.bert_score import load_bert_scorer
from lsm_probe.models.devices import resolve_device, resolve_dtype

QUICK = {"max_new_tokens": 4, "batch_size": 2}


# By name


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("meta", "this machine has only the CPU"),
        ("cuda", "this machine has only the CPU"),
        ("mps", "this machine has only the CPU"),
        ("privateuseone", "this machine has only the CPU"),
        ("graphics card", "torch knows no such device"),
        ("0", "torch knows no such device"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_in_one_line(device, reason, tiny_llm_folder):
    with pytest.raises(InputError) as error:
        lsm_probe.load(tiny_llm_folder, device=device)
    assert str(error.value) == f"--device {device} cannot be used here ({reason}): try --device auto"


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:2"])
def test_an_unusable_device_beside_a_gpu_is_refused_in_one_line(device, simulated_device):
    with simulated_device(), pytest.raises(InputError, match=f"--device {device} cannot be used here"):
        resolve_device(device)


def test_auto_is_cuda_or_the_cpu_in_probes_and_in_training(tiny_llm_folder, simulated_device):
    for name, expected in {"cuda": "cuda", "mps": "cpu"}.items():
        with simulated_device(name):
            assert resolve_device("auto").type == expected
            assert lsm_probe.load(tiny_llm_folder).model.device.type == expected
            assert init_distributed().device.type == expected
    assert resolve_device("auto").type == init_distributed().device.type == "cpu"


# By process


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(
    device, tiny_llm_folder, tiny_bert_folder, tiny_encoder_folder, second_of_two, simulated_device, monkeypatch
):
    current = []
    with simulated_device():
        monkeypatch.setattr("torch.cuda.set_device", current.append)
        assert lsm_probe.load(tiny_llm_folder, device=device).model.device == torch.device("cuda", 1)
        assert load_bert_scorer(str(tiny_bert_folder), 1, device=device).model.device == torch.device("cuda", 1)
        assert resolve_device("cuda:0") == torch.device("cuda", 0)  # whoever names one gets it
    assert set(current) == {1}


def test_more_processes_than_gpus_are_refused_for_both_names(second_of_two, simulated_device):
    with simulated_device(count=1):
        for device in ("auto", "cuda"):
            with pytest.raises(InputError, match=r"this machine has 1\. Start no more processes than GPUs"):
                resolve_device(device)


# By a quantiser


@pytest.fixture
def placed_by_transformers(monkeypatch):
    """`from_pretrained` puts LLMs on the GPU itself, as it does for bitsandbytes."""
    from_pretrained = LlamaForCausalLM.from_pretrained.__func__

    def placing(cls, *arguments, **options):
        loaded = from_pretrained(cls, *arguments, **options)
        (loaded[0] if isinstance(loaded, tuple) else loaded).to("cuda")
        return loaded

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(placing))


def test_a_text_llm_that_transformers_puts_on_the_gpu_is_measured_there(
    tiny_llm_folder, samples, simulated_device, placed_by_transformers
):
    with simulated_device():
        for device in ("auto", "cuda:1", "cpu"):
            checkpoint = lsm_probe.load(tiny_llm_folder, device=device, dtype="float32")
            assert str(checkpoint.model.device) == {"auto": "cuda:0"}.get(device, device)
            assert lsm_probe.attention(checkpoint, samples[:2], **QUICK).eta().mean.shape == (3,)


def test_the_other_parts_of_an_lsm_follow_it(
    tiny_encoder_folder, tiny_llm_folder, samples, simulated_device, placed_by_transformers
):
    with simulated_device():
        built = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder)
        assert {parameter.device for parameter in built.model.parameters()} == {torch.device("cuda", 0)}
        assert lsm_probe.attention(built, samples[:1], **QUICK).eta().mean.shape == (3,)


def test_an_adapter_is_merged_into_it(tiny_llm_folder, tmp_path, samples, simulated_device, monkeypatch, request):
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llm_folder), peft.LoraConfig(r=2))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_llm_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    sample = samples[0]
    expected = lsm_probe.load(tmp_path / "adapter", device="cpu").logits(sample)
    request.getfixturevalue("placed_by_transformers")
    with simulated_device():
        found = lsm_probe.load(tmp_path / "adapter", dtype="float32").logits(sample)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_model_that_cannot_be_moved_is_refused_in_one_line(tiny_llm_folder, monkeypatch):
    def refuse(self, *_, **__):
        raise ValueError("You need to install `pip install bitsandbytes>=0.48.0` to move a 8-bit model")

    monkeypatch.setattr("transformers.PreTrainedModel.to", refuse)
    with pytest.raises(InputError, match=r"cannot be moved to cpu \(You need to install .*bitsandbytes>=0.48.0"):
        lsm_probe.load(tiny_llm_folder, device="cpu")


# Dtypes


def test_bfloat16_is_refused_on_a_device_that_cannot_compute_with_it(simulated_device):
    with simulated_device("mps", bfloat16=False):
        device = resolve_device("mps")
        assert resolve_dtype("auto", device) == torch.float16
        with pytest.raises(InputError, match="--dtype bfloat16: this MPS cannot compute with bfloat16; use auto"):
            resolve_dtype("bfloat16", device)
    with simulated_device("mps"):
        assert resolve_dtype("auto", resolve_device("mps")) == torch.bfloat16


def test_bfloat16_that_cuda_emulates_is_warned_of(simulated_device):
    with simulated_device(bfloat16=False):
        assert resolve_dtype("auto", resolve_device("cuda")) == torch.float16
        with pytest.warns(UserWarning, match="this CUDA has no bfloat16 instructions"):
            assert resolve_dtype("bfloat16", resolve_device("cuda")) == torch.bfloat16


# The random generators


def test_a_connector_is_drawn_without_touching_the_users_generators(tiny_lsm, simulated_device):
    tiny_lsm.model.draw_connector(3)
    expected = [parameter.clone() for parameter in tiny_lsm.connector.parameters()]
    with simulated_device():
        torch.manual_seed(7)
        before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in range(2))]
        tiny_lsm.model.draw_connector(3)
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in range(2))]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))
    assert all(one.equal(other) for one, other in zip(expected, tiny_lsm.connector.parameters(), strict=True))
