"""rlhf-loop: the feedback loop, whole."""

__version__ = "0.1.0"
