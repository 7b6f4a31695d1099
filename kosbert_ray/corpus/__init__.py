"""What is read: the listing, the plan, and the slices of text that flow on to the encoder.

In reading order: ``listing`` with ``folders`` (which files) → ``columns`` with ``look``, ``types`` and ``names`` (what is
in them, settled once for all) → ``plan`` (how they are cut) → ``lines`` with ``sniff`` and ``decompress``, ``records``,
``arrow`` (rows of one fragment) → ``slices`` with ``cast`` and ``sizes`` (the fragment's slices, one after another).
"""
