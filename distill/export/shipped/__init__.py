"""Source files that travel with exported weights; each needs only torch and diffusers."""
