"""One run from seed to record: one plain loop, checkpoints that resume bit for bit, several processes, and how a step
is computed fastest on this machine.

May use: data, method, runs.
"""
