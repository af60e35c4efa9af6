"""Writers of output files: videos, images, arrays and JSON."""
