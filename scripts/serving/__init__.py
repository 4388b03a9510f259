"""The parts of `scripts/bench_serving.py`: a model, the servers to compare, and the load on them."""
