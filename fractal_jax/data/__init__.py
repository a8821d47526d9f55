"""Batches (pipeline.py), and one module for each kind of source."""
