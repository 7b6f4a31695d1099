"""What the package carries so that a first run needs no download.

``bundled:everyday`` is text; ``bundled:kosbert-mini`` is a small Korean encoder, see ``configs/train_kosbert_mini.yaml``.
"""
