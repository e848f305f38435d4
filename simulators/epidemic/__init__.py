"""An epidemic (SEIR): the contact rate over 140 days to expected weekly counts of new cases.

    python simulators/epidemic/seir.py in.txt out.txt

A plain script, run as a program; simulator.toml says how. As a function, within Python:

    from simulators.epidemic.seir import weekly_counts
"""
