"""What people said: read from files, imported, kept, asked for, checked, exported, deleted, traced."""
