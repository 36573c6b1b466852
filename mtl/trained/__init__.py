"""What is done with a trained run: verification, galleries, photos, exported files, smaller models."""
