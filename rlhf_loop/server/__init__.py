"""The service: a chat endpoint, feedback on its answers, an annotation page and a dashboard. It never imports torch."""
