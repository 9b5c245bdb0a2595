"""The speed suite of `emorl bench`: this engine compared with its alternatives, in one run.

    python -m emorl_cli bench --quick

`workload` defines the work. `engines` do it, each in its own process (`worker`), and `rounds` alternates
between them. `cases` and `processes` are the measurements, and `plan` runs them. `targets` and `report` present the
results, and `compare` compares two runs.
"""
