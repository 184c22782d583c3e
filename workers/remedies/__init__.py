"""What is done to a model that hides its gradients or its logits, so that a search by gradients is not blind."""
