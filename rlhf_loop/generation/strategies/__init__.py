"""Ways to make a round's candidates, one a file; which there are: `rlhf_loop/strategies.py`."""
