"""The base class of all networks, and the U-Nets of EDM and EDM2, which diffusers lacks.

The U-Nets have the parameter names of the published checkpoints, which therefore load with `strict=True`.
"""
