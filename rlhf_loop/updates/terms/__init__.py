"""Losses learned from people's critiques, beside the loss of a policy update: one file a method.

A file has the formula, tensors to tensors, and a class that makes a `Term` (`term.py`) of the round's
`CritiquedCompletion`s. `trainer.py` adds terms to a trainer of TRL. Which methods there are, and their settings, stands
in `rlhf_loop/critique_methods.py`.
"""
