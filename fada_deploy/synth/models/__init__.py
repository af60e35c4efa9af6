"""The things of a street as meshes; each function builds its variants once and remembers them."""
