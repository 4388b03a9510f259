"""The parts of `scripts/train_starter.py`: teachers, texts, views, heads and the two students."""
