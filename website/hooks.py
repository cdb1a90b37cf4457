"""What the site has beside docs/: the files of the project that its pages link to, and the pages of the Python reference.

A page links to `../examples/gateway` as the repository has it. On the site such a folder is its README, or a page with its texts;
a program or a policy is a page with its text; anything else is itself. They are below source/, and their own links are followed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = "docs/prototypes.md"
"""The navigation has the folders after it to which this page links, and those to which their READMEs link."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
LANGUAGES = {
    ".py": "python", ".toml": "toml", ".sh": "sh", ".json": "json", ".service": "ini", ".yaml": "yaml", ".yml": "yaml",
    ".txt": "text", ".html": "html", "": "text",
}  # fmt: skip
"""Files that are shown as text, and how."""
FILM = "[![The prototypes, one after the other](website/film.gif)](website/film.webm)"
"""At the top of the site; a wheel, whose pages are the same, does not have it."""
ELSEWHERE = re.compile(rb"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
ELSEWHERE_CSS = re.compile(rb"""(?:@import|url\()\s*["']?(?:https?:)?//""")


def on_config(config: MkDocsConfig) -> None:
    """Adds the folders of the examples, each by its heading, to the navigation."""
    folders = list(_folders(EXAMPLES))
    for place in [*folders]:
        folders += _folders(f"{place}/README.md") if (ROOT / place / "README.md").is_file() else ()
    start = next(entry["Start"] for entry in config.nav if "Start" in entry)
    section = next(entry["Examples"] for entry in start if "Examples" in entry)
    section.extend(_uri(place) for place in dict.fromkeys(folders))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the linked files, and the pages of the Python reference."""
    for place in _outside():
        path = ROOT / place / "README.md" if (ROOT / place / "README.md").is_file() else ROOT / place
        if path.is_dir() or path.suffix in LANGUAGES:
            files.append(File.generated(config, _uri(place), content=_shown(place)))
        else:
            files.append(File.generated(config, _uri(place), abs_src_path=str(path)))
    for page in sorted((ROOT / "website" / "api").glob("*.md")):
        files.append(File.generated(config, f"api/{page.name}", abs_src_path=str(page)))
    for name in ("website/site.css", "website/film.gif", "website/film.webm"):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links to files of the project into links to where the site has them; the first page begins with the film."""
    uri = page.file.src_uri
    here = uri.removeprefix("source/") if uri.startswith("source/") else f"docs/{uri}"
    if not (ROOT / here).is_file():  # a page that is generated
        return markdown

    def moved(link: re.Match[str]) -> str:
        place = _place(here, link[1])
        return posixpath.relpath(_uri(place), posixpath.dirname(uri) or ".") if place else link[1]

    markdown = LINK.sub(moved, markdown)
    return re.sub(r"(?m)^(# .*\n)", rf"\1\n{FILM}\n", markdown, count=1) if uri == "index.md" else markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Raises an error where a page would load something from elsewhere."""
    for file in Path(config.site_dir).rglob("*"):
        pattern = {".html": ELSEWHERE, ".css": ELSEWHERE_CSS}.get(file.suffix)
        if pattern and (found := pattern.search(file.read_bytes())):
            raise PluginError(f"{file} loads from elsewhere: {found[0].decode()}")


def _place(page: str, link: str) -> str | None:
    """The path from the root of the file that this page links to, if there is one."""
    place = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return place if place not in {".", ".."} and not place.startswith(("../", "/")) and (ROOT / place).exists() else None


def _uri(place: str) -> str:
    """Where the site has a file of the project, as a source."""
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    path = ROOT / place
    if path.is_dir():
        return f"source/{place}/{'README.md' if (path / 'README.md').is_file() else 'index.md'}"
    return f"source/{place}.md" if path.suffix in LANGUAGES else f"source/{place}"


def _linked(page: str) -> Iterator[str]:
    """The files and folders of the project that this page links to."""
    for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if place := _place(page, link):
            yield place


def _folders(page: str) -> Iterator[str]:
    """The folders outside docs/ that this page links to."""
    return (place for place in _linked(page) if not place.startswith("docs") and (ROOT / place).is_dir())


def _outside() -> list[str]:
    """The files and folders outside docs/ that its pages, or pages linked from these, link to; each once."""
    found: dict[str, str] = {}
    pages = [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]
    while pages:
        for place in _linked(pages.pop()):
            if not place.startswith("docs/") and _uri(place) not in found:
                found[_uri(place)] = place
                if _uri(place).endswith("README.md") or place.endswith(".md"):
                    pages.append(_uri(place).removeprefix("source/"))
    return list(found.values())


def _shown(place: str) -> str:
    """A page with the text of a file, or of all files of a folder."""
    path = ROOT / place
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    texts = [f"# {place}\n"]
    for file in (file for file in files if file.suffix in LANGUAGES):
        texts += [f"## {file.name}\n"] if path.is_dir() else []
        texts.append(f"````{LANGUAGES[file.suffix]}\n{file.read_text(encoding='utf-8').rstrip()}\n````\n")
    return "\n".join(texts)
