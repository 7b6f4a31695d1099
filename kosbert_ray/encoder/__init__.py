"""Text to vectors. A library of its own: ``Encoder.load("jhgan/ko-sbert-sts").encode(texts)`` → float32 ``[n, 768]``.

Read it in this order: ``source`` (where the model folder is) → ``spec`` (what is in it) → ``tokenizer`` (texts to token
ids) → ``packing`` (token ids to batches without padding) → ``attention`` and ``pooling`` (what a batch goes through) →
``model`` (all of it together). ``source`` and ``spec`` do without torch, so that a driver can do without it.
"""
