"""Scored answers and feedback made into rows: pairs, labels and demonstrations to train on, questions to people."""
