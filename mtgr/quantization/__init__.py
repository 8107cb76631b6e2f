"""Checkpoints with the weights of their linears in fewer bits, as vLLM and the reference load them."""
