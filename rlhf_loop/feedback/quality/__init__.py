"""How good feedback is: agreement, reliability of annotators, consensus, biases, drift, near-duplicates.

`quality.check.check(store)` measures everything; each module works alone on `votes.Votes` or plain arrays.
"""
