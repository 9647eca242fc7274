"""Jacobians, Hessians and their products by reverse mode: dense, sparse, or their diagonal."""
