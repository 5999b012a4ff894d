"""What a browser shows: the annotation page, the dashboard, their templates and scripts."""
