"""What `bench_training.py` runs: the same work by four programs, each in a process of its own.

environment.py   the peers' environments
inputs.py        the model and the pairs, written once for all programs
work.py          what a program is told, and the meter it reports with; imported by all, so it needs torch alone
plain.py         transformers' Trainer and CLIPModel      sentence.py   sentence-transformers' cached ranking loss
open_clip.py     open_clip's own training loop            ours.py       this package
reference.py     the gradient in float64                  recall.py     scores of the models along a run
"""
