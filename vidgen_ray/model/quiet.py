"""Silences the notices of diffusers and transformers."""


def quiet() -> None:
    """Keep the libraries' progress bars and notices off the terminal; errors still appear."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
