"""ChatGLM3-6B."""
