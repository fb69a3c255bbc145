"""The terminal chat of chat.py: the conversation, its answers with a kept cache, commands, and the screen."""
