"""What a person does with a trained face VAE: `explore COMMAND --run runs/NAME`."""
