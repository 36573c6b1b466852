"""Faces in photos: boxes and embeddings from one trunk (`finder`), enrolled people (`gallery`), and the threshold of "unknown"."""
