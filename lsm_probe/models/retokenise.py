"""Responses of one model as token ids of another."""

from __future__ import annotations

from collections.abc import Mapping

from lsm_probe.models.checkpoint import Checkpoint


def in_tokens_of(reader: Checkpoint, writer: Checkpoint, responses: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Responses of one model as token ids of another, where their tokenizers differ.

    Args:
        reader: the model whose token ids are returned.
        writer: the model whose token ids the responses are.
        responses: token ids by sample id.

    Returns:
        Token ids by sample id: the same text, closed with EOS where the response was. Responses without text are left
        out.
    """
    if has_same_tokenizer(reader, writer):
        return dict(responses)
    found = {}
    for sample, ids in responses.items():
        again = reader.encode_response(writer.decode(ids))
        ended = bool(ids) and ids[-1] in writer.eos_token_ids
        if again:
            found[sample] = again if ended or len(again) < 2 else again[:-1]
    return found


def has_same_tokenizer(reader: Checkpoint, writer: Checkpoint) -> bool:
    """Whether all token ids of one model stand for the same text in another, which may have more tokens."""
    return writer.tokenizer.get_vocab().items() <= reader.tokenizer.get_vocab().items()
