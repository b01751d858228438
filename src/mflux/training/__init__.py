"""Training of adapters: train.json to a LoRA, with the engine's own forward pass."""
