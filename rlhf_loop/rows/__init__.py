"""Scored answers and feedback made into rows: the pairs, labels and demonstrations that training consumes."""
