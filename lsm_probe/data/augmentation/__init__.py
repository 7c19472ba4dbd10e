"""Self-powered data: the text LLM's own responses to the transcript become the targets for the speech.

For a transcript t and a drawn instruction i the target is argmax P(t̂ | t, i; θ_LLM) (arXiv 2410.03798, section 4.1),
found greedily. For one part of the mix, speech recognition, the target is the transcript itself.

`plan` draws and tokenises, `local` generates with transformers, `at_scale` with datatrove; both write the same Parquet
`shards`, which `collect` turns into the training manifest and the report. `recipe` holds the settings of a data set.
"""

from typing import Literal

Keep = Literal["punctuation", "finished", "all"]
"""Which answers stay in the data; see [`lsm_probe.data.augmentation.recipe.Recipe`]."""
Thinking = Literal["drop", "keep"]
"""Whether a reasoning model's thinking is dropped or kept."""
