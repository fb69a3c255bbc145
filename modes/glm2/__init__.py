"""ChatGLM2-6B."""
