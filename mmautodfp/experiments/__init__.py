"""Measurements of the package; the rest of it imports none of them."""
