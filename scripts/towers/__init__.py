"""The parts of `scripts/train_towers.py` and `scripts/measure_towers.py`: cached features, and heads fitted on them."""
