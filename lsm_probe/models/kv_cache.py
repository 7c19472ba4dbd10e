"""The key-value cache of an LLM, under the name that the installed transformers gives it."""

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
"""Name of the cache, as an argument of `forward` and `generate` and as a key of outputs. It is `cache` since
transformers 5.24; versions before 5.40 also accept the earlier name `past_key_values`."""
