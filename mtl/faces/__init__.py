"""Faces in photos: boxes and embeddings from one trunk (`finder`), enrolled people (`gallery`), the match threshold (`calibration`)."""
