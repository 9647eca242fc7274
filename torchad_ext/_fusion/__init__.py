"""Calls in a graph of Dynamo that become ops: which, and how they are declared."""
