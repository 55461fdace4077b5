"""How `psp.extract` works: a network as a graph, what is known of its channels, and the smaller graph."""
