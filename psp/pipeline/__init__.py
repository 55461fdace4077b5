"""The stages of dvc.yaml as commands, `python -m psp.pipeline`: profiles, the plan of their time, runs on one machine
or many, and what the notebooks share.

May use: data, report, runs, timing, training.
"""
