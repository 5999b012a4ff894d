"""What leaves the store, format by format; `rlhf_loop.feedback.export` writes it to files."""
