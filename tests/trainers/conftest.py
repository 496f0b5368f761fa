"""Fixtures of the trainer's tests."""

from tests.tiny import shared, teachers

__all__ = ["shared", "teachers"]
