"""What makes XLA compile quickly, for what runs once or twice: tests, programs that they start, notebooks.

As a program it prints the variables of the environment, one assignment a line, as a shell's `export` takes them.
"""

import mmap
import pathlib

import jaxlib

# with its fusion emitters, a small function takes 1.5 to 2.5 times as long to compile
FLAG = "xla_cpu_use_fusion_emitters"


def environment() -> dict[str, str]:
    """{variable: value}; without the flag where the library does not know it, since XLA then ends the process."""
    flags = {"XLA_FLAGS": f"--{FLAG}=false"} if _is_known(FLAG) else {}
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **flags}


def _is_known(flag: str) -> bool:
    library = pathlib.Path(jaxlib.__file__).parent / "libjax_common.so"
    if not library.exists():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.encode()) >= 0


if __name__ == "__main__":
    print("\n".join(f"{name}={value}" for name, value in environment().items()))
