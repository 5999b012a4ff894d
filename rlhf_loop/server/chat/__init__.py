"""Chat: what an application asks, the process that answers, and what the store keeps of it."""
