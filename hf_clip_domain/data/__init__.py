"""From any source of image-text pairs to the batches a model learns from."""
