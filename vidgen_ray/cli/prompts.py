"""`vidgen prompts`: the standard prompts and what fills them."""

from rich.console import Console

from vidgen_ray.cli.options import ConfigOption, SetOption
from vidgen_ray.config import load_config, parse_overrides


def prompts(config: ConfigOption = "cogvideox_5b_i2v", settings: SetOption = None) -> None:
    """List the prompt templates: text, {fields} to give, and fields that have a default."""
    tree = load_config(config, parse_overrides(settings or []))
    from vidgen_ray.generation.templates import load_templates

    console = Console(highlight=False)
    for name, template in load_templates(tree.prompt_templates).items():
        console.print(f"[bold]{name}[/]", soft_wrap=True)
        console.print(f"  {template.prompt}", markup=False, soft_wrap=True)
        for field in template.fields:
            default = template.defaults.get(field)
            text = "to give" if default is None else f"default: {default}"
            console.print(f"    {field}: {text}", markup=False, soft_wrap=True)
