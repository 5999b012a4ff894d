"""What is kept, and how: the store, its tables, its queue of questions, its migrations. Start at `store.py`."""
