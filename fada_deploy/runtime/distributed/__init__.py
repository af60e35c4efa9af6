"""Segment files on many machines: videos are divided into chunks, and their outputs are joined."""
