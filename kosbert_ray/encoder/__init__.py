"""Text to vectors. A library of its own: ``Encoder.load("jhgan/ko-sbert-sts").encode(texts)`` → float32 ``[n, 768]``.

Read it in this order: ``source`` (where the model folder is) → ``spec`` (what is in it) → ``tokenizer`` (texts to token
ids) → ``packing`` (token ids to batches without padding) → ``attention`` and ``pooling`` (what a batch goes through) →
``model`` (all of it together). ``source`` and ``spec`` do without torch, so that a driver can do without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    """Imports torch when the encoder is asked for, and not before."""
    if name == "Encoder":
        from kosbert_ray.encoder.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
