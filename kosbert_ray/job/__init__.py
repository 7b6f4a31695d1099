"""A run: its config, its pipeline on Ray Data, its life from plan to _SUCCESS, and what a person sees of it.

Read it in this order: ``config`` → ``lifecycle`` (plan, subtract, run, finalise) → ``cluster`` (Ray itself) → ``pipeline``
(the stages) → ``progress``. ``search`` looks things up in a finished output.
"""
