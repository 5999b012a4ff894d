"""`python -m rlhf_loop ...`, and so `accelerate launch -m rlhf_loop ...`: the command line."""

from rlhf_loop.cli import main

main()
