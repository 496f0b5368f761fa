"""Encoders between data and a teacher: prompts to conditions, images to latents and back."""
