"""What PyTorch's autograd graph tells of a function: its nodes, and the Functions of others in it."""
