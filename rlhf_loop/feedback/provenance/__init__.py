"""Where something comes from, and what came of it: from feedback to models and back."""
