"""Rounds that start by themselves: when (`triggers`), how (`watcher`), and who is told (`events`, `outbox`)."""
