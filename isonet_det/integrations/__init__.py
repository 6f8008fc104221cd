"""Adapters to packages that are not required: import the one you need."""
