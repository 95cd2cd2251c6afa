"""Convert configurations of other tools to profiles, with an account of every key.

`rules` has what a rule is; the other modules are the tables of one tool each, and `read` finds out
whose configuration a file is.
"""
