"""Configuration files: YAML with line numbers, environment and flags over it, every problem named."""
