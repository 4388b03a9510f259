"""Exported models: the same embeddings computed by ONNX Runtime or MLX, behind the interface of a dual encoder."""
