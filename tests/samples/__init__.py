"""What several tests share: made-up data, runs, stand-ins of services; nothing here is a test."""
