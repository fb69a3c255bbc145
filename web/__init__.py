"""The page: train, watch, chat and export in a browser; docs/web.md."""
