"""What a recipe takes before it is started: memory by stage and part, in which way of sharing out it fits, and time."""
