"""Compilers, devices and the kernels as functions; no other room knows them."""
