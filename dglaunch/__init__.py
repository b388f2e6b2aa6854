"""dglaunch: a torchrun-native launcher for offline batch inference with diffusion transformers."""
