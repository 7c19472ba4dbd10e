"""Control without speech: train the text LLM itself on transcripts as input.

    python analyses/speech_anchor_bias/text_control.py MANIFEST FOLDER

The model learns the targets of the manifest from instructions and transcripts (`text`), with the adapters, steps and
learning rates of an arm's second stage. With the targets of transcription it learns to copy its input whatever the
instruction says. If its eta falls as that of the arm `vanilla_asr` does, the cause is copying and not the speech.
"""

import sys
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

import lsm_probe

IGNORED = -100
STEPS, BATCH = 160, 8


def items(llm, samples):
    for sample in samples:
        prompt, response = llm.prompt_ids(sample), llm.encode_response(sample.target)
        yield {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


def collate(rows, *, pad_id):
    def padded(key, value):
        return pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value)

    ones = pad_sequence([torch.ones(len(row["labels"]), dtype=torch.long) for row in rows], batch_first=True)
    return {"input_ids": padded("input_ids", pad_id), "labels": padded("labels", IGNORED), "attention_mask": ones}


def main(manifest: str, folder: str) -> None:
    llm = lsm_probe.load("builtin:llm", device="cpu", dtype="float32")
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = get_peft_model(llm.model, LoraConfig(r=4, lora_alpha=8, target_modules=linear))
    arguments = TrainingArguments(
        output_dir=f"{folder}-training",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=True,
        seed=0,
    )
    rows = list(items(llm, lsm_probe.read_manifest(manifest)))
    collator = partial(collate, pad_id=llm.tokenizer.pad_token_id)
    Trainer(model=adapters, args=arguments, train_dataset=rows, data_collator=collator).train()
    llm.model = adapters.merge_and_unload()
    llm.save(folder)


if __name__ == "__main__":
    main(*sys.argv[1:3])
