"""Benchmarks' protocols: datasets, metrics, runs and reports."""
