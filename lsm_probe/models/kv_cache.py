"""The key-value cache of an LLM, under the name that the installed transformers gives it."""

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
"""The argument of `forward` and `generate` that takes a cache, and the key of an output that holds it: `cache` since
transformers 5.24, which still takes the earlier `past_key_values` and will not from 5.40 on."""
