"""The profiles measured beside plain diffusers, and their settings chosen."""
