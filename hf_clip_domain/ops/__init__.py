"""What happens to a model beside and after training: how runs are tracked, and how its traffic is watched."""
