"""Meshes of the things in a street; each function builds its meshes once and caches them."""
