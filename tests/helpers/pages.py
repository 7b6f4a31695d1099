"""The pages of the documentation, and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("reference/options.md", "reference/cli.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its content."""

    language: str
    content: str

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command of a console or bash block, with the lines of output below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.content.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            elif self.language == "bash" and line.strip() and not line.startswith("#"):
                found.append((line, []))
            elif found and line.strip():
                found[-1][1].append(line)
        return found


@dataclass(frozen=True)
class Page:
    """A page by its path below the repository's root."""

    name: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return ROOT / self.name

    @property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text("utf-8")

    @property
    def prose(self) -> str:
        """All of it but the fenced blocks."""
        return BLOCK.sub("", self.text)

    @property
    def slug(self) -> str:
        """A name that a folder and a bucket can have."""
        return re.sub(r"\W+", "-", self.name.removesuffix(".md")).lower()

    def blocks(self, *languages: str) -> list[Block]:
        """Its fenced blocks in these languages, in order."""
        found = [Block(*match.groups()) for match in BLOCK.finditer(self.text)]
        return [block for block in found if block.language in languages]

    def spans(self) -> list[str]:
        """What is in backticks in its prose."""
        return SPAN.findall(self.prose)


def pages() -> list[Page]:
    """README first, then every page that is not generated."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    names = [str(path.relative_to(ROOT)) for path in docs if str(path.relative_to(ROOT / "docs")) not in GENERATED]
    return [Page("README.md"), *map(Page, names)]
