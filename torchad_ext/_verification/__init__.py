"""Ops held against their definitions."""
