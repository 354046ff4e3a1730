"""Prepares a data set for tensorflow-datasets: python -m agop_jax.data.prepare cifar10

Downloads the published archives, or takes them from --manual_dir, and stores the images in a form that is read without
TensorFlow. Preparing needs an extra for TensorFlow, `pip install 'agop_jax[prepare]'`; Tiny-ImageNet only 'tfds'.
"""

import argparse
import importlib.util
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from absl import logging

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.data import prepared

MANUAL = "folder with the archives, under their published names; of tiny_imagenet also the unzipped tree"
SECONDS = 10  # to wait for a first answer of a server


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(prepared.NAMES))
    parser.add_argument("--data_dir", type=Path, default=prepared.data_dir(), help="where to (default: %(default)s)")
    parser.add_argument("--manual_dir", type=Path, help=MANUAL)
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    try:
        print(prepare(options.name, options.data_dir.expanduser(), options.manual_dir))
    except UserError as error:
        print(f"agop_jax: {error}", file=sys.stderr)
        sys.exit(2)


def prepare(name: str, data_dir: Path, manual_dir: Path | None = None) -> Path:
    """Prepares a data set, if it is not there yet, and returns its directory.

    Args:
      name: one of `prepared.NAMES`.
      data_dir: of TFDS, see `prepared.data_dir`.
      manual_dir: folder with the published archives, which are then not downloaded; of Tiny-ImageNet also the folder
        'tiny-imagenet-200' that its archive holds, or the one around it.

    Raises:
      UserError: unknown name, an extra that is missing, no network, a missing, truncated or changed archive.
    """
    if name not in prepared.NAMES:
        raise unknown_name("TFDS data set", name, prepared.NAMES)
    if directory := prepared.find(name, data_dir):
        return directory
    _require_extras(name)
    import tensorflow_datasets as tfds

    try:
        if name == "tiny_imagenet":
            builder = _tiny_imagenet(data_dir, manual_dir)
        else:
            builder = tfds.builder(name, data_dir=data_dir, file_format=prepared.FORMAT)
            _require_archives(builder.url_infos, data_dir, manual_dir)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except UserError:
        raise
    except Exception as error:  # TFDS raises errors of many kinds, by what is missing, truncated or changed
        raise UserError(
            f"{name} could not be prepared ({_first_line(error)}): download its archives anew, or prepare it in an "
            "empty folder with --data_dir=FOLDER"
        ) from error
    return Path(builder.data_path)


def _require_extras(name: str) -> None:
    extras = {"tensorflow_datasets": "tfds"} | ({} if name == "tiny_imagenet" else {"tensorflow": "prepare"})
    for module, extra in extras.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"preparing {name} needs {module}: pip install 'agop_jax[{extra}]'")


def _tiny_imagenet(data_dir: Path, manual_dir: Path | None) -> Any:
    """Our own builder, with its archive."""
    import tensorflow_datasets as tfds

    from agop_jax.data.tiny_imagenet import ARCHIVE, ROOT, URL, TinyImagenet, is_tree

    if manual_dir is not None:
        folder = manual_dir.expanduser()
        trees = [tree for tree in (folder, folder / ROOT) if is_tree(tree)]
        archive = trees[0] if trees and not (folder / ARCHIVE).exists() else folder / ARCHIVE
    else:
        _require_network(URL)
        archive = tfds.download.DownloadManager(download_dir=data_dir / "downloads").download(URL)
    return TinyImagenet(archive=str(archive), data_dir=data_dir, file_format=prepared.FORMAT)


def _require_archives(url_infos: Any, data_dir: Path, manual_dir: Path | None) -> None:
    """Each archive of a builder is in the folder, or downloaded before, or can be downloaded."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    if manual_dir is not None:
        names = [info.filename for info in url_infos.values()]
        if missing := [name for name in names if not (manual_dir.expanduser() / name).exists()]:
            raise UserError(f"{str(manual_dir)!r} lacks {', '.join(missing)}: wanted {', '.join(names)}")
        return
    for url, info in url_infos.items():
        if not any((data_dir / "downloads").rglob(get_dl_fname(url, info.checksum))):
            _require_network(url)


def _require_network(url: str) -> None:
    """Asks the server once: TFDS by itself retries for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer, if only to this kind of question
    except OSError as error:
        raise UserError(
            f"no network ({_first_line(error)}): download {url} elsewhere and name its folder with --manual_dir=FOLDER"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


if __name__ == "__main__":
    main()
