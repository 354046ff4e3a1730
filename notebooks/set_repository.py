"""Writes the git URL of this project into every notebook: python notebooks/set_repository.py https://github.com/OWNER/NAME.

The one place where the owner's URL is needed: it goes into the first cell, which installs the project where it is not
installed (Google Colab), and into the badge, which then opens the notebook of the branch `main` there.
"""

import json
import re
import sys
from pathlib import Path

COLAB = "https://colab.research.google.com/"


def with_repository(notebook: dict, name: str, url: str) -> dict:
    """The notebook with its badge and first code cell pointing to the repository."""
    owner_and_name = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", url)
    if not owner_and_name:
        raise SystemExit(f"wanted https://github.com/OWNER/NAME, got {url!r}")
    link = f"{COLAB}github/{owner_and_name[1]}/blob/main/notebooks/{name}"
    badge, install = notebook["cells"][:2]
    badge["source"][0] = re.sub(r"\]\([^)]*\)\s*$", f"]({link})\n", badge["source"][0])
    install["source"][0] = re.sub(r'"[^"]*"', f'"{url}"', install["source"][0], count=1)
    return notebook


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        changed = with_repository(json.loads(path.read_text()), path.name, sys.argv[1])
        path.write_text(json.dumps(changed, indent=1, ensure_ascii=False) + "\n")
