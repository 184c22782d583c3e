"""What reads results: statistics, replay and the page."""
