"""A file on its way into the store: formats recognised, texts redacted, prompts split, rows written in batches."""
