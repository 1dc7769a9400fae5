"""Adapters to the facility's own systems."""
