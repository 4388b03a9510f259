"""Does the traffic still look like what the model was adapted to? A reference, windows of requests, calibrated tests."""
