"""Write a manifest of halved sentences: the prompt is the first half of each text, and the second half is scored.

Usage: python analyses/text_ability/sentences.py MANIFEST.jsonl SENTENCES.jsonl
"""

import sys

from lsm_probe import Sample, read_manifest
from lsm_probe.data.manifest import manifest_writer


def main() -> None:
    texts, sentences = sys.argv[1:]
    with manifest_writer(sentences) as write:
        for sample in read_manifest(texts):
            words = (sample.text or "").split()
            first, second = words[: len(words) // 2], words[len(words) // 2 :]
            if first:  # a text of one word has no first half
                text, target = " ".join(first), " ".join(second)
                write(Sample(id=sample.id, instruction="Continue the text.", text=text, target=target))


if __name__ == "__main__":
    main()
