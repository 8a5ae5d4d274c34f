"""`latentcomm models`: what is built in."""

from rich.table import Table

from latentcomm.cli.shared import console
from latentcomm.models import builtin as weights


def models() -> None:
    """List the built-in models: size, licence, source, and whether they are on disk."""
    table = Table("name", "parameters", "download", "licence", "on disk", "source")
    for entry in weights.BUILT_IN.values():
        place = "yes" if weights.is_on_disk(entry) else "no"
        table.add_row(entry.name, entry.parameters, f"{entry.megabytes} MB", entry.licence, place, entry.source)
    console(160).print(table)
    print(f"kept in {weights.cache_folder()}; any hub id, local directory or .gguf file can be given as well")
