"""Pages of the site that are made of the code, and links out of docs/, as hooks of MkDocs (mkdocs.yml).

Four things happen before a page is rendered:

- Files outside docs/ become pages: recipes, programs and the documents of the repository under `repository/`, and the
  notebooks, with the outputs that they hold, under `tutorials/`. Nothing is executed.
- The report of the demo's run is written beside the pages, as `distill report` writes it.
- A comment `<!-- made: NAME -->` in a page is replaced by what the function `NAME` in `MADE` returns.
- A link to a file outside docs/ leads to the page of that file. On a code host it leads to the file.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # the packages, and the other files of this folder

from made import REPORT, audit, commands, keys, papers, recipes, report, report_of_the_demo  # noqa: E402

MADE = {"audit": audit, "commands": commands, "keys": keys, "papers": papers, "recipes": recipes, "report": report}
SHOWN = ("configs/**/*.yaml", "examples/*.py", "launch/authors.yaml", "launch/cluster/*.*", "*.md", "LICENSE")
"""The files outside docs/ that get a page."""
LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "sh", ".sbatch": "sh"}
COMMENT = re.compile(r"<!-- made: (\w+) -->")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"`[^`\n]+`")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files outside docs/."""
    files.append(File.generated(config, REPORT, content=report_of_the_demo()))
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        for name, content in pages_of(notebook):
            files.append(File.generated(config, name, content=content))
    sources = {source for pattern in SHOWN for source in ROOT.glob(pattern)} - {ROOT / "README.md"}
    for source in sorted(sources):
        files.append(File.generated(config, place_of(source), content=shown(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill in what is made of the code, and let links out of docs/ lead to pages of the site."""
    place = page.file.src_uri
    if source_of(place).suffix not in (".md", ".ipynb"):
        return markdown  # a single block of code
    parts = FENCE.split(COMMENT.sub(lambda found: MADE[found[1]](), markdown))  # a fence at every second place
    for index in range(0, len(parts), 2):
        # Within code, the tables of GitHub need a backslash before |, and those of Python-Markdown show it.
        part = CODE.sub(lambda code: code[0].replace("\\|", "|"), parts[index])
        parts[index] = LINK.sub(lambda link: link[1] + retarget(link[2], place) + link[3], part)
    return "".join(parts)


def place_of(source: Path) -> str:
    """Return the place in the site of a file of the repository."""
    if source.is_relative_to(ROOT / "docs"):
        return source.relative_to(ROOT / "docs").as_posix()
    if source == ROOT / "README.md":
        return "index.md"
    if source.suffix == ".ipynb":
        return f"tutorials/{source.stem}.md"
    return f"repository/{source.relative_to(ROOT).as_posix().removesuffix('.md')}.md"


def source_of(place: str) -> Path:
    """Return the file of the repository that a page of the site shows."""
    file = ROOT / place.removeprefix("repository/")
    notebook = ROOT / "examples" / file.with_suffix(".ipynb").name
    if not place.startswith("repository/"):
        return notebook if place.startswith("tutorials/") and notebook.is_file() else ROOT / "docs" / place
    return file if file.is_file() else file.with_suffix("")


def retarget(target: str, place: str) -> str:
    """Return a link of a page for the site. Links to other sites stay."""
    source = (source_of(place).parent / target).resolve()
    if re.match(r"[a-z]+:", target) or not source.exists():
        return target  # of a picture of a notebook, or dead, of which MkDocs warns
    there = place_of(source)
    return posixpath.relpath(there, posixpath.dirname(place) or ".")


def shown(source: Path) -> str:
    """Return the page of a file outside docs/. It is found by links, and not by the search."""
    text = source.read_text("utf-8")
    if source.suffix == ".md":
        return text
    title, language = source.relative_to(ROOT).as_posix(), LANGUAGES.get(source.suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {title}\n\n````{language}\n{text.rstrip()}\n````\n"


def pages_of(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield the places and contents of a notebook's pictures and of its page."""
    name, parts = f"tutorials/{notebook.stem}", list[str]()
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}_{len(parts)}.png"
                yield picture, base64.b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({posixpath.basename(picture)})")
            elif said := "".join(output.get("text", data.get("text/plain", ()))).rstrip():
                parts.append(f"```text\n{said}\n```")
    parts.insert(1, f"This is `examples/{notebook.name}` with its outputs, which a test runs.")
    yield f"{name}.md", "\n\n".join(parts)
