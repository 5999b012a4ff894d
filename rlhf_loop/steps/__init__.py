"""The steps of a round that need no model: store and files in, files and store out."""
