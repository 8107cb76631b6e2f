"""RecTools' recommenders, fitted on one task in an environment of their own: `python -m runner TASK OUT`.

RecTools wants numpy 1.26 and vLLM wants numpy 2, so this package runs in the environment that `make baselines` makes.
It imports nothing else of this project; `mtgr.evaluation.baselines` starts it with its own folder as the search path.
A task is a folder of Parquet files (task.py), and what is to be predicted for its test cases never enters it.
"""
