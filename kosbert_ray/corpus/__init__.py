"""What is read: the listing, the plan, and the slices of text that flow on to the encoder.

Read it in this order: ``listing`` (which files) → ``inspect`` (what is in them) → ``plan`` (how they are cut) →
``parquet`` and ``lines`` + ``records`` (rows of one fragment) → ``slices`` (the fragment's slices, one after another).
"""
