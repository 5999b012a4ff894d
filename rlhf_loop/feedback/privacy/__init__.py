"""What protects people: personal data taken out of texts, and all of a user deleted."""
