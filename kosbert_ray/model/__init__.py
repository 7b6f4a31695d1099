"""Models: finds a model's folder, completes it, and reads what it says. Loads without torch.

Reading order: ``source`` and ``hub`` (find the folder), ``locate`` (completes it with a base model or code elsewhere),
``files`` (the files that count), ``spec`` (reads them), and ``prepare`` (the copy that every process of a run loads).
"""
