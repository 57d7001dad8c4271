"""The model: the one place where weights load. Only this package imports diffusers and peft."""
