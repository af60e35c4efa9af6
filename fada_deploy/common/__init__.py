"""What every part shares, on NumPy and OpenCV alone: errors, label spaces, resizing, metadata, metrics."""
