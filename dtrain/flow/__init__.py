"""The page-long stories: each function is what one command does, from top to bottom."""
