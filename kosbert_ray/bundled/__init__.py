"""What the package carries so that a first run needs no download.

``bundled:everyday`` is text, ``bundled:kosbert-mini`` a small Korean encoder, trained by ``configs/train_kosbert_mini.yaml``.
"""
