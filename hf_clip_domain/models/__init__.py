"""Models: loading a dual encoder from anywhere, and what the rest of the package needs to know about it."""
