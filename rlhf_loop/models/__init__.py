"""Models: checked, loaded, trained on one process or many, saved whole; and the tokens they read and write."""
