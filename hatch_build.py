"""What the package index shows of the project: its addresses, and the README with links that lead somewhere from there.

Both follow from one address, [`REPOSITORY`].
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

REPOSITORY = ""
"""Public address of the repository, such as https://github.com/OWNER/lsm-probe; empty while there is none. Set it here
alone: without it the package names no addresses, and relative links of the README become plain text."""

_RELATIVE = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:|#)([^)\s]+)\)")


def for_index(readme: str, repository: str) -> str:
    """The README with absolute links: the package index shows it apart from the files that it links to."""

    def absolute(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if not repository:
            return "" if picture else text
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{target})"

    return _RELATIVE.sub(absolute, readme)


class IndexMetadata(MetadataHookInterface):
    """Fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, REPOSITORY)}
        if REPOSITORY:
            docs = f"{REPOSITORY}/blob/main/docs/index.md"
            metadata["urls"] = {"Repository": REPOSITORY, "Documentation": docs, "Issues": f"{REPOSITORY}/issues"}
