"""MkDocs hook: the site holds LOG.md and CONTRIBUTING.md too, which lie one folder above the pages that link to them."""

from pathlib import Path

from mkdocs.structure.files import File

ABOVE = ("LOG.md", "CONTRIBUTING.md")


def on_files(files, config):
    """Add the pages from above."""
    for name in ABOVE:
        files.append(File.generated(config, name, content=(Path(config.docs_dir).parent / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, **_):
    """Links to and from them as the site has them."""
    if page.file.src_uri in ABOVE:
        return markdown.replace("](docs/", "](")
    for name in ABOVE:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown
