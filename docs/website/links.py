"""Checks the links of the built site: each leads to a file, and to a place that is in it."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links of a page, and the places that links can lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """A line for each link that leads nowhere, or to another host for what a page needs to show."""

    @cache
    def read(path: Path) -> _Page:
        return _Page(path.read_text())

    found = []
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts:
            continue  # the theme's own templates
        for link in read(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{path.relative_to(site)}: {link} is no file")
            elif target.suffix == ".html" and unquote(parts.fragment) not in read(target).places:
                found.append(f"{path.relative_to(site)}: {link} is no place")
    return sorted(set(found))
