"""The parts of `full_circle.py`."""
