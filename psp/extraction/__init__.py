"""From a masked network to a physically smaller one with the same outputs, and what either costs. `extract` is the
whole in four steps: a network as a graph, what is known of its channels, the smaller graph, its layers.

May use: kernels, method.
"""
