"""`python -m adray serve MODEL`: verdicts over HTTP, from a bundle without torch, or from a trial."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adray.cli.bundle_file import bundle_errors
from adray.cli.command_parser import CommandParser
from adray.cli.line_model import MODEL_HELP, add_model_options, held_model, is_bundle
from adray.cli.line_options import check_packages, positive_number, read_token
from adray.cli.options import count, positive
from adray.errors import InputError
from adray.language.catalogue import LANGUAGES, Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence

if TYPE_CHECKING:
    from adray.runtime.http_server import Tls
    from adray.runtime.judge import Held
    from adray.runtime.server import Access
    from adray.runtime.server_input import Limits

_PACKAGES = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "yaml": "PyYAML",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: serve until it is ended.

    Raises:
        InputError: for an address, a token, files or a model that cannot be used.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    check_packages(_PACKAGES, "serve")

    from adray.runtime.http_server import bound_socket, make_server
    from adray.runtime.judge import threads_each
    from adray.runtime.result_log import ResultLog
    from adray.runtime.server import Access, Server, is_loopback

    # All that may be wrong is looked at before a model is loaded.
    token = read_token("--token-file", options.token_file, "ADRAY_TOKEN")
    access = Access(is_loopback(options.host), token)
    _check_access(access, options.host)
    tls = _tls(options)
    say = load_catalogue(language_of(os.environ))
    with bundle_errors():
        place = bound_socket(options.host, options.port)
        log = None if options.log is None else ResultLog(options.log)
    workers = _workers(options)
    held = held_model(options, threads_each(options.threads, workers))

    server = Server(held, _limits(options, workers), access, log, _pages(), options.reload_seconds)
    port = place.getsockname()[1]
    shown = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{'http' if tls is None else 'https'}://{shown}:{port}/"
    print(say("serve at", model=held.model.name, address=address, workers=workers), flush=True)
    for line in _remarks(held, access, tls is not None, options, say):
        print(line, flush=True)
    try:
        make_server(server.app(), tls, options.timeout).run([place])
    except KeyboardInterrupt:
        print(say("serve ended"))
    return 0


def _check_access(access: Access, host: str) -> None:
    """Refuse to be reached by others without a token.

    Raises:
        InputError: with the remedy.
    """
    if not access.is_loopback and not access.token:
        raise InputError(Sentence.of("serve no token", host=host))


def _tls(options: argparse.Namespace) -> Tls | None:
    """Read the files of a certificate, None for none.

    Raises:
        InputError: for one without the other, and for files that are none.
    """
    from adray.runtime.http_server import Tls, check_tls

    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise InputError(Sentence.of("serve tls"))
    tls = Tls(options.tls_cert, options.tls_key)
    with bundle_errors():
        check_tls(tls)
    return tls


def _workers(options: argparse.Namespace) -> int:
    """Give how many images are judged at once."""
    from adray.runtime.judge import usable_cores

    # A trial is one image's at a time.
    return (options.workers or usable_cores()) if is_bundle(options.model) else 1


def _limits(options: argparse.Namespace, workers: int) -> Limits:
    """Give what a request may cost."""
    from adray.runtime.server_input import Limits

    return Limits(
        most_bytes=options.max_mb * 2**20,
        most_pixels=options.max_megapixels * 10**6,
        most_images=options.max_images,
        seconds=options.timeout,
        workers=workers,
        queue=options.queue,
    )


def _pages() -> dict[str, Mapping[str, str]]:
    """Give what the page says, in each language."""
    from adray.runtime.server_page import TEXTS

    pages: dict[str, Mapping[str, str]] = {}
    for language in LANGUAGES:
        say = load_catalogue(language)
        texts = {}
        for name in TEXTS:
            texts[name] = say(f"serve page {name}")
        pages[language] = texts
    return pages


def _remarks(
    held: Held, access: Access, is_encrypted: bool, options: argparse.Namespace, say: Catalogue
) -> list[str]:
    """Say what is promised, where results go, and what is not safe."""
    lines = [held.model.judge.sentence(say.language)]
    if options.log is None:
        lines.append(say("serve without log"))
    else:
        lines.append(say("serve log", folder=options.log))
    if not access.is_loopback and not is_encrypted:
        lines.append(say("serve in clear"))
    return list(filter(None, lines))


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray serve",
        description="Judge images over HTTP: POST /predict, /health, /metrics for Prometheus, /docs, and a page to "
        "drop an image on. A bundle needs no torch; where its file is replaced, or at SIGHUP, it is loaded anew and no "
        "request is lost.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=count, default=8765, help="0 for any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file with the token that each request must bring; needed, or ADRAY_TOKEN, where other machines reach "
        "the address",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="certificate in PEM, for encrypted connections"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="its key in PEM, without a password")
    parser.add_argument(
        "--log", metavar="FOLDER", help="folder for the results, a file of JSON lines a day"
    )
    parser.add_argument(
        "--workers", type=count, default=0, help="images judged at once (default: one a core)"
    )
    parser.add_argument(
        "--threads", type=count, default=0, help="of the CPU for each (default: an equal share)"
    )
    parser.add_argument(
        "--queue",
        type=count,
        default=16,
        help="requests that wait besides; one more gets status 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=30.0,
        metavar="SECONDS",
        help="from a request's first byte to its answer (default: 30)",
    )
    parser.add_argument(
        "--max-mb", type=positive, default=32, help="MiB of a request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive,
        default=50,
        help="millions of pixels of an image (default: %(default)s)",
    )
    parser.add_argument(
        "--max-images", type=positive, default=64, help="of one request (default: %(default)s)"
    )
    parser.add_argument(
        "--reload-seconds",
        type=count,
        default=2,
        metavar="SECONDS",
        help="between two looks at a bundle's file; 0 for SIGHUP alone (default: %(default)s)",
    )
    add_model_options(parser)
    return parser
