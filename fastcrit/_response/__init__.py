"""Derivatives of a denoiser: tangents, ways of taking them, and what their products with the Jacobian say."""
