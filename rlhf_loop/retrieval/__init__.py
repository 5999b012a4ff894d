"""Texts as vectors: computed once, kept in files, searched exactly."""
