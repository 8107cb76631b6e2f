"""SiLU attention, each kernel beside its PyTorch twin of the same signature."""
