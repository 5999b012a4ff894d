"""Feedback that applications send: its schema, and how it is stored."""
