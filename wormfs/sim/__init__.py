"""The seeded simulator: the real log, election, replica and machine against a faked outside world.

One seed decides everything: the plan of faults, the delays, the order in which tasks run. See
docs of each module: world.py has the picture, checks.py and linearizable.py say what must hold.
"""
