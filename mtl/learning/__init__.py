"""The LightningModules, one for each mode of training."""
