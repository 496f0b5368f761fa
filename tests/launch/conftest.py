"""Fixtures of the tests of the command line."""

from tests.tiny import shared, teachers

__all__ = ["shared", "teachers"]
