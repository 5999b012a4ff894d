"""What leaves the store, format by format; `rlhf_loop.feedback.exporters.export` writes it to files."""
