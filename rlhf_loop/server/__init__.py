"""The service: a chat API whose answers are kept, an API and pages for people's feedback, a dashboard."""
