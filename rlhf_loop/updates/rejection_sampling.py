"""Rejection sampling: supervised fine-tuning on the best of each prompt's candidates by the reward model.

RAFT (Dong et al. 2023, arXiv 2304.06767) and Llama 2's rejection sampling (Touvron et al. 2023, arXiv 2307.09288,
section 3.2.3). Which answers those are is settled before, in `rlhf_loop.rows.demonstrations.best_of_n`; the
training is that of `sft.py`.
"""

from __future__ import annotations

from rlhf_loop.updates.sft import update

__all__ = ["update"]
