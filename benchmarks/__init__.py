"""Side-by-side measurements of bucket mounts: servers, contestants, workloads, report. Never imported by the package itself.

`python -m benchmarks run` measures, `python -m benchmarks report DIR` writes tables and plots of what was measured.
"""
