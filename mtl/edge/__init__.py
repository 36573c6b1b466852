"""From a trained model to a device: what it costs there, smaller models, and the file that runs without torch."""
