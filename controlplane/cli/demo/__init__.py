"""The main job: a replica of a running machine's disk replaced under load, and proven right.

Starts the real programs by their commands and speaks to the control plane alone, as a user would.
Nothing here is imported by the other programs, and nothing of theirs is imported here.
"""
