"""Tables, claims and figures as pure functions of committed records: what a reader sees, and nothing that trains or
measures.

May use: method, runs, timing.
"""
