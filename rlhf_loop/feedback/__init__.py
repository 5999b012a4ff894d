"""What the loop remembers: the store, what comes into it, what goes out, and whether it can be trusted."""
