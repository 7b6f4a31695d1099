"""Finds the original error in what Ray raises."""

from __future__ import annotations

import re

from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from kosbert_ray import errors
from kosbert_ray.errors import JobFailed, KosbertError, first_line

OWN_ERROR = re.compile(r"^(?:\S+: )?kosbert_ray\.errors\.(\w+): (.+)$", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _own_error(text: str) -> KosbertError | None:
    """The last KosbertError in the text of a traceback."""
    found = OWN_ERROR.findall(ANSI.sub("", text))
    if not found:
        return None
    name, line = found[-1]
    kind = getattr(errors, name, JobFailed)
    return kind(line.strip()) if issubclass(kind, KosbertError) else None


def error_of(error: Exception) -> KosbertError:
    """The KosbertError that Ray wrapped, or a JobFailed that describes in one line what broke."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        # Ray's wrapper is an instance of the wrapped class with a traceback as its text, and Ray appends advice to the
        # wrapped error's text.
        if isinstance(link, KosbertError) and not isinstance(link, RayError):
            return type(link)(first_line(link))
        chain.append(link)
        link = getattr(link, "cause", None) or link.__cause__
    # When an actor dies, its error is only in the text of Ray's error.
    for link in chain:
        if own := _own_error(str(link)):
            return own
    causes = [link for link in chain if not isinstance(link, RayError | SystemException)] or chain
    text = next((line for line in str(causes[0]).splitlines() if line.strip()), "")
    return JobFailed(
        f"the run failed ({type(causes[0]).__name__}: {text.strip()}); committed slices stay, run the same command again"
    )
