"""What commands compute in the latent space."""
