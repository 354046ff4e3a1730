"""Writes what an experiment made to files of their own: python -m agop_jax.export donor runs/digits donor.safetensors

donor and recipient become PyTorch state dicts with the names of torchvision or timm, each with a model card (.md)
beside it. features become one .safetensors file, matrices a folder of CSV files as the original project's. Nothing is
overwritten, and the work directory stays as it is.
"""

import argparse
import sys

from absl import logging

from agop_jax.core.compilation import keep_compiled_code
from agop_jax.core.errors import UserError
from agop_jax.experiments.exports import Work

KINDS = {
    "donor": "the trained donor",
    "recipient": "a network initialised from the donor, before training or after",
    "features": "NFM and AGOP of the donor's layers, in factors",
    "matrices": "NFM and AGOP of the donor's convolutions, as dense CSV files",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input."""
    options = vars(_parser().parse_args(arguments))
    kind, workdir, target = (options.pop(name) for name in ("kind", "workdir", "target"))
    logging.set_verbosity(logging.WARNING)
    keep_compiled_code()
    try:
        getattr(Work(workdir), f"write_{kind}")(target, **options)
    except UserError as error:
        print(f"agop_jax: {error}", file=sys.stderr)
        sys.exit(2)
    print(target)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("agop_jax.export", description=__doc__, formatter_class=plain)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, what in KINDS.items():
        own = kinds.add_parser(kind, help=what, description=what)
        own.add_argument("workdir", help="work directory of the experiment")
        own.add_argument("target", help="folder to write" if kind == "matrices" else "NAME.safetensors to write")
        if kind == "recipient":
            own.add_argument("--init", required=True, help="method of initialisation, such as he_nfm")
            own.add_argument("--seed", type=int, help="of the recipient, as in results.csv (default: the first)")
            own.add_argument("--train_size", type=int, help="training images, 0 for all (default: the config's first)")
            own.add_argument("--width", type=float, help="factor on the channels (default: the config's first)")
            own.add_argument("--budget", type=int, help="training steps of a trained one (default: the config's first)")
            own.add_argument("--trained", action="store_true", help="after its training: needs config.recipients.keep")
        else:
            own.add_argument("--seed", type=int, help="of the donor (default: the experiment's own)")
    return parser


if __name__ == "__main__":
    main()
