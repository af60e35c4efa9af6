"""Run an exported model on images and video with NumPy, OpenCV, PyAV and one inference backend.

The public names are those of `fada_deploy`; this package imports nothing by itself.
"""
