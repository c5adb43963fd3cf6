"""Benchmarks beside float32 and peers; `python bench/run.py` runs them all."""
