"""Other stream processors doing the fold's job, each as a process out of an environment of its own (`make rivals`).

`histories`, `quix_job` and `faust_job` run there: they import nothing that is not in those environments.
"""
