"""The tests.

This is a package since torch-fidelity installs a package of the same name, which would else be found first.
"""
