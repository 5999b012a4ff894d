"""Questions to people and what becomes of an answer: cards, calibration items, more questions when they run out."""
