"""Value, tangents and Laplacian of any PyTorch function in one forward sweep."""
