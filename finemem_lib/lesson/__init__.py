"""The lesson of notebooks 03 and 08.

Toy cases that can be checked by hand, and exercises that check themselves.
"""
