"""Sentence embeddings of large text corpora, computed by a resumable batch job on Ray.

:func:`embed` runs a job and :func:`plan` estimates it, :class:`Output` reads what it wrote, and :class:`Encoder` embeds
texts in this process. :func:`search`, :func:`verify` and :func:`status` are the commands of these names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kosbert_ray._version import __version__
from kosbert_ray.api import embed, plan, search, status, verify
from kosbert_ray.errors import KosbertError

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder
    from kosbert_ray.outputs.output import Output

__all__ = ["Encoder", "KosbertError", "Output", "__version__", "embed", "plan", "search", "status", "verify"]


def __getattr__(name: str) -> Any:
    """Imports a public class when it is first used."""
    if name == "Encoder":
        from kosbert_ray.encoder.encoder import Encoder

        return Encoder
    if name == "Output":
        from kosbert_ray.outputs.output import Output

        return Output
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
