"""Training: turns a base model and a recipe into a sentence-transformers folder with a model card.

``data`` reads data files, ``base`` loads or creates the base model, ``teacher`` computes a teacher's vectors once,
``stage`` runs sentence-transformers' trainer, and ``train`` runs the stages in order and resumes an interrupted
training. Requires the extra ``train``.
"""
