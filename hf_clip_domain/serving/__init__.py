"""A FastAPI service around one dual encoder; imports nothing of the training stack."""
