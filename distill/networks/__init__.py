"""Networks that diffusers lacks. Parameters bear the names of the published checkpoints, which load strictly."""
