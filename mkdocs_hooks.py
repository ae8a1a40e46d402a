"""Brings files of the repository that lie outside docs/ into the site, and turns links to files into links to pages."""

import re
from os.path import normpath
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
#: Page of the site: its file in the repository. All others are docs/<page>.
PAGES = {
    "index.md": "README.md",
    "hopfield.md": "kernels/hopfield/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
FILES = {file: page for page, file in PAGES.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for page, file in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to pages."""
    source = page.file.src_uri
    folder = Path(PAGES.get(source, f"docs/{source}")).parent

    def link(found: re.Match[str]) -> str:
        file = normpath(folder / found[1])
        return f"]({FILES.get(file, file.removeprefix('docs/'))}"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)", link, markdown)
