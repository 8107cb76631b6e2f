"""The engine measured beside other systems: one script, one machine, one run, medians, and how far each is from its
floor.
"""
