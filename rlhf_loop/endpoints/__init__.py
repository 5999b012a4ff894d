"""Judges, scorers and writers behind any server that speaks OpenAI's chat completions, asked within a budget and never
twice for the same: `settings.py` (a recipe's `endpoints:`), `asks.py` (what is asked), `client.py` (who asks),
`budget.py` (what a question may take), `answers.py` (what is kept), `judging.py` (which of two answers is better),
`complaints.py` (whether an answer takes up a complaint). None of it imports torch.
"""
