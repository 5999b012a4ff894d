"""A policy as a process: it answers conversations over its pipes, for as long as the service behind it lives."""
