"""Text to vectors, usable as a library: ``Encoder.load("jhgan/ko-sbert-sts").encode(texts)`` returns float32 ``[n, 768]``.

Reading order: ``kosbert_ray.model`` (finds and reads the model folder), ``tokenizer`` (texts to token ids), ``packing``
(token ids to batches without padding), ``engines`` (run the transformer), ``head``, and ``encoder``, which combines them.
The modules up to ``packing`` load without torch, because a driver and tokenizing workers run without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kosbert_ray.encoder.encoder import Encoder

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    """Imports the encoder, and with it torch, on first use."""
    if name == "Encoder":
        from kosbert_ray.encoder.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
