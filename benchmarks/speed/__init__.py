"""The speed suite behind `emorl bench`: this engine beside what a user would run instead, in one run.

    python -m emorl_cli bench --quick

`workload` says what is asked for, `engine` and `peers` do it, each in a process of its own (`worker`), `rounds` takes
turns between them, `cases` and `processes` are the measurements, `plan` one run of them, `targets` and `report` what is
shown of it, `compare` holds two runs against each other.
"""
