"""MTGR in PyTorch: the module that trains, and the reference that serving must agree with."""
