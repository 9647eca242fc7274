"""PyTorch's autograd graph: the nodes of a function, and the Functions of others in it."""
