"""A network as one compiled function on a CPU: `freeze` plans its layers, and takes the fastest way to run them here.

`lanes.c` has images as the lanes of vector registers, `pixels.c` neighbouring pixels, with `tiles.h` for AMX.

May use: extraction, kernels, method.
"""
