"""The parts of `bench_data.py`."""
