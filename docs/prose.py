"""Checks the English of docstrings, comments, messages and pages: ``python docs/prose.py [PATH …]``.

Prints each finding and the count per room, and exits with 1 if there are any. A line with
the comment ``prose: ok`` passes.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATHS = ("kosbert_ray", "jobs", "configs", "docs", "README.md", "CHANGELOG.md", "SECURITY.md", "Makefile")
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".jinja", ".toml")
GENERATED = ("bundled", "__pycache__", "assets", "cli.md", "options.md")  # the last two from strings in the code
ALLOWED = "prose: ok"

# Old or translated register, with what to write instead.
WORDS = {
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix",
    r"reckon(?:s|ed|ing)?": "estimate, compute",
    r"stands?(?! for\b| alone\b|still)(?= (?:in|under|at|by|among|beside|there|as|on|before|several)\b)": "is",
    r"(?:is|are|was|be|been|not) told|told (?:apart|by|from|of|to)": "report, follow from",
    r"(?:of|for) (?:ours|theirs|hers)|of (?:its|their|his) own kind": "kosbert-ray's, its own",
    r"be (?:it|they)": "whether",
    r"whereby|thereby|thereof|therein|whence|hither|thither|henceforth|lest|hence|thus": "use plain words",
    r"shall|ere|nought|naught|amid|whilst|save for": "use plain words",
    r"(?:what )?(?:becomes?|became) of": "what happens to",
    r"what (?:comes|came) of": "the result of",
    r"(?:goes|going|went) on(?! the)|go on(?! the)": "continue, resume",
    r"at work": "running",
    r"at the least|at the most": "at least, at most",
    r"(?:is|are) (?:there|here) already|are there already": "already exists",
    r"comes? of it": "results",
    r"passed by": "skipped",
    r"ends? (?:well|in good order)|end(?:ed|ing) well|well or not": "succeed",
    r"strangers?": "another program",
    r"for ever": "forever",
    r"to be had|nowhere to be": "available",
    r"(?:held|hold|holds) (?:it |them )?against": "compare with",
    r"but for (?:what|the)": "except",
    r"no text shards?": "unsupported file",
    r"outlasts?|outlasted": "retry until",
    r"a word to": "notify",
    r"makes? (?:\w+ )?whole again|made whole": "repair",
    r"likeness": "similarity",
    r"betimes|presently|of late|ought to": "use plain words",
    r"headway": "progress",
    r"as it comes|as they come": "in order",
    r"said otherwise|says? so": "reports it",
    r"(?:is|are) (?:of|for) (?:no|some) (?:avail|use)": "does not help",
    r"of (?:like|unlike) (?:length|size|kind|columns)|unlike columns": "similar, different",
}
OPENINGS = r"(?:What|How|Whether|Whose|Where|Who|Which|If|As|All that|That|Why)\b"
WORD = re.compile(
    r"\b(?:" + "|".join(f"(?P<w{number}>{word})" for number, word in enumerate(WORDS)) + r")\b", re.IGNORECASE
)
HINTS = list(WORDS.values())
OPENING = re.compile(OPENINGS)
CODE = re.compile(r"``.*?``|`[^`]*`|\{[^}]*\}")

Finding = tuple[int, str]


def python_prose(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text and whether it is a docstring, of each comment and each string in a Python file."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value, id(node) in docs
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def page_prose(source: str) -> Iterator[tuple[int, str, bool]]:
    """Lines of a page or a config outside of its code blocks."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line, False


def findings(path: Path) -> Iterator[Finding]:
    """Line and complaint of each finding in a file."""
    source = path.read_text("utf-8")
    lines = source.splitlines()
    prose = python_prose(source) if path.suffix == ".py" else page_prose(source)
    for number, text, docstring in prose:
        if docstring and (opening := OPENING.match(text.lstrip())) and ALLOWED not in lines[number - 1]:
            yield number, f"docstring begins with {opening.group()!r}; begin with an imperative or a noun phrase"
        for offset, line in enumerate(text.splitlines() or [text]):
            at = min(number + offset, len(lines))
            if ALLOWED in lines[at - 1]:
                continue
            for match in WORD.finditer(CODE.sub("", line)):
                hint = HINTS[int(str(match.lastgroup)[1:])]
                yield at, f"{match.group()!r}: {hint}"


def files(paths: Iterable[str]) -> Iterator[Path]:
    """Every file to check under ``paths``."""
    for name in paths:
        path = ROOT / name
        found = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.suffix in SUFFIXES)
        for item in found:
            if not {*GENERATED} & {*item.parts} and item != Path(__file__):
                yield item


def room(path: Path) -> str:
    """The room of a file, for the counts."""
    if not path.is_relative_to(ROOT):
        return str(path.parent)
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "kosbert_ray" else parts[0]


def main(paths: list[str]) -> int:
    """Checks ``paths``; returns the exit code."""
    counts: Counter[str] = Counter()
    for path in files(paths or PATHS):
        for number, complaint in findings(path):
            counts[room(path)] += 1
            print(f"{os.path.relpath(path, ROOT)}:{number}: {complaint}")
    for name, count in sorted(counts.items()):
        print(f"{count:6,}  {name}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
