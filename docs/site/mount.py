"""MkDocs hook: figures and the studies' pages, which lie beside docs/, become part of the site.

Links in the sources stay those of the repository, so that they also work where the sources are read.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for pattern in ("figures/**/*.png", "figures/**/*.svg", "analyses/*/README.md", "analyses/notebooks/*.ipynb"):
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    # One folder less to leave: the site's root is docs/.
    inner = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"](../{inner}", f"]({inner}")
