"""The networks that brittle knows, and the loading of any other."""
