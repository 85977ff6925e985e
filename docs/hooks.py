"""Additions of MkDocs to the pages: files from beside docs/, and reference tables made from the program itself.

A page writes `<!-- generated: NAME -->`; the site has the text there that `reference.py` makes of it. So pages are
whole on a code host, and nothing generated is kept in git.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import reference

_LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")
_MARKER = re.compile(r"<!-- generated: ([\w-]+) -->")
_FOLDER = "repository"  # of the site, for files from beside docs/


def on_files(files: Files, config: Any) -> Files:
    """Add each file of the repository that a page links to, and what those link to."""
    root = Path(config.docs_dir).parent
    waiting = [Path(file.abs_src_path) for file in files if file.src_uri.endswith(".md") and file.abs_src_path]
    added: set[Path] = set()
    while waiting:
        page = waiting.pop()
        for target in _targets(page, root):
            if target in added or target.is_relative_to(config.docs_dir):
                continue
            added.add(target)
            files.append(File.generated(config, _site_path(target, root), abs_src_path=str(target)))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to files beside docs/ find them in the site, and put generated text in its place."""
    root = Path(config.docs_dir).parent
    source = Path(page.file.abs_src_path or config.docs_dir)
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = (source.parent / found[2]).resolve()
        if "://" in found[2] or not target.is_file():
            return found[0]
        path = target.relative_to(config.docs_dir).as_posix() if target.is_relative_to(config.docs_dir) else None
        return found[1] + posixpath.relpath(path or _site_path(target, root), here or ".") + found[3]

    markdown = _LINK.sub(link, markdown)
    return _MARKER.sub(lambda found: reference.TEXTS[found[1]](), markdown)


def _targets(page: Path, root: Path) -> list[Path]:
    """Files of the repository that a page links to."""
    names = [found[2] for found in _LINK.finditer(page.read_text(encoding="utf-8")) if "://" not in found[2]]
    paths = [(page.parent / name).resolve() for name in names]
    return [path for path in paths if path.is_file() and path.is_relative_to(root)]


def _site_path(path: Path, root: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return f"{_FOLDER}/{relative}" + ("" if path.suffix else ".txt")  # Dockerfile: shown, not run
