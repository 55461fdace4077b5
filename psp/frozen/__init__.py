"""A network as one compiled function for batches on a CPU: `freeze` plans layers and memory, `lanes.c` runs them.

May use: extraction, kernels, method.
"""
