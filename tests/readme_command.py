"""Prints a command of the README without the part that makes a virtual environment: `python readme_command.py tests`.

A command is the code block after the comment `<!-- command: NAME -->`.
"""

import pathlib
import re
import sys

README = pathlib.Path(__file__).parent.parent / "README.md"


def command(name: str) -> str:
    """The shell lines of the block, from `pip install` on."""
    blocks = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)```", README.read_text(), flags=re.DOTALL))
    return blocks[name][blocks[name].index("pip install") :]


if __name__ == "__main__":
    print(command(sys.argv[1]))
