"""Models: from a base and a recipe to a sentence-transformers folder with a card that says what it can do.

Data files (``data``) become datasets; a base is loaded or made (``base``); a teacher's vectors are computed once
(``teacher``); each stage (``stage``) is a run of sentence-transformers' trainer; ``train`` goes from one to the next, and
starts again where it was stopped. Needs the extra ``train``.
"""
