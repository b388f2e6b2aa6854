"""What the tests have in common: how they start dglaunch, what a run must leave, made-up models, servers and pictures.

commands        dglaunch in this process, or as one of its own          results         reading what a run left
ranks           forks of a process that has imported everything         processes       ranks of a real torchrun, and what befalls them
tiny_models     a checkpoint of each family, random and tiny            edit_images     pictures and tables to edit
api_servers     the image APIs on loopback (remote_runs: its commands)  pretend_gpu     a GPU that is not there
browser         a headless Chromium                                     with_slurm      a Slurm cluster for one command (slurm_cluster: for tests)
"""
