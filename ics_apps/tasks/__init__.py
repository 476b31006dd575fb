"""Tasks: one folder a domain; tasks never import each other."""
