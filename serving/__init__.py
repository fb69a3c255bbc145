"""The HTTP server of serve.py: OpenAI's API over the engines of generation/."""
