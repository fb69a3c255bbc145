"""The formats that a merged model is written in, beside the official layout, and checks of what was written."""
