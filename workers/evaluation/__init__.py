"""Evaluators: images in, logits and gradients out, the same bits wherever an image sits in a batch."""
