"""Shared by all subpackages: errors, documents, label spaces, images, video, files and runs."""
