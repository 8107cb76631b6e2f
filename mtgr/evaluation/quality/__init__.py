"""`make quality`: our recipes and the field's baselines on public logs, from training to docs/quality.md.

Each run, of one system with one seed on one data set, is a JSON file in a folder; what is there is not computed
again, and docs/quality.md is made of these files alone, wherever they were computed.
"""
