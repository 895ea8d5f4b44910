"""Measurements of the product; nothing of it imports them."""
