"""What happens to a model after training: how its traffic is watched."""
