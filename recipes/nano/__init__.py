"""How the embedded model was made: photos -> VAE -> transformer and text encoder -> checkpoint."""
