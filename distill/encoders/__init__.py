"""Encoders between data and a teacher: text encoders for prompts, and autoencoders between images and latents."""
