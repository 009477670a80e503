"""`python -m adray watch FOLDER --bundle FILE.adray --out RESULTS`: a verdict for each new image.

A bundle needs no torch. A trial or an ensemble takes the place of one with it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adray.cli.bundle_file import bundle_errors
from adray.cli.command_parser import CommandParser
from adray.cli.line_model import MODEL_HELP, add_model_options, held_model
from adray.cli.line_options import check_packages, number, positive_number, read_token
from adray.cli.options import count
from adray.errors import InputError
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence

if TYPE_CHECKING:
    from adray.runtime.outbox import Send
    from adray.runtime.watch import Watcher, WatchPlan

_PACKAGES = {"watchdog": "watchdog", "yaml": "PyYAML"}
_MQTT_PACKAGES = {"paho": "paho-mqtt"}
_SCAN_SECONDS = 30.0
"""Between two looks at a folder whose system tells of changes."""
_POLL_SECONDS = 2.0
"""Between two looks at one whose system does not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: watch until it is ended.

    Raises:
        InputError: for folders, addresses or a model that cannot be used.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    check_packages(_PACKAGES, "watch")
    if options.mqtt is not None:
        check_packages(_MQTT_PACKAGES, "mqtt")

    # All that may be wrong is looked at before a model is loaded.
    say = load_catalogue(language_of(os.environ))
    with bundle_errors():
        plan = _plan(options)
        watcher = _watcher(plan, options)
    for line in _lines(watcher, options, say):
        print(line, flush=True)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: watcher.stop())
    waiting = watcher.run(options.once)
    counts = watcher.tally.verdicts()
    print(say("watch ended", images=watcher.judged, **counts))
    for channel, left in waiting.items():
        print(say("watch waits", number=left, channel=channel))
    return 0


def _watcher(plan: WatchPlan, options: argparse.Namespace) -> Watcher:
    """Load the model, and make a watcher of it.

    Raises:
        BundleError: for what cannot be used.
    """
    from adray.runtime.watch import Watcher

    return Watcher(plan, held_model(options, options.threads))


def _plan(options: argparse.Namespace) -> WatchPlan:
    """Give what is watched, and what is done with a verdict.

    Raises:
        BundleError: for folders and addresses that cannot be used.
        InputError: likewise.
    """
    from adray.runtime.arrivals import network_kind
    from adray.runtime.watch import WatchPlan, check_plan

    plan = WatchPlan(
        folder=_absolute(options.folder),
        out=_absolute(options.out),
        settle=options.settle,
        patience=options.patience,
        with_maps=options.maps != "none",
        sort_into=None if options.sort_into is None else _absolute(options.sort_into),
        moves=options.move,
        metrics=None if options.metrics is None else _absolute(options.metrics),
        channels=_channels(options),
    )
    check_plan(plan)
    if plan.metrics is not None and not plan.metrics.parent.is_dir():
        raise InputError(Sentence.of("watch metrics", metrics=options.metrics))
    is_polled = options.poll is not None or bool(network_kind(plan.folder))
    seconds = options.poll or (_POLL_SECONDS if is_polled else _SCAN_SECONDS)
    return replace(plan, is_polled=is_polled, scan_seconds=seconds)


def _absolute(path: str) -> Path:
    """Give a path that does not depend on where the process runs. Links in it stay."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


def _channels(options: argparse.Namespace) -> dict[str, Send]:
    """Give the ways by which results are sent.

    Raises:
        BundleError: for an address that is none.
        InputError: for a file without a token or a login.
    """
    from adray.runtime.outbox import Mqtt, Webhook

    channels: dict[str, Send] = {}
    if options.webhook is not None:
        token = read_token("--webhook-token-file", options.webhook_token_file, "")
        channels["posted"] = Webhook(options.webhook, token).send
    if options.mqtt is not None:
        login = read_token("--mqtt-login-file", options.mqtt_login_file, "")
        channels["published"] = Mqtt(options.mqtt, login).send
    for name in ("webhook-token-file", "mqtt-login-file"):
        first = name.split("-")[0]
        if getattr(options, name.replace("-", "_")) and getattr(options, first) is None:
            raise InputError(Sentence.of("watch option", name=name, first=first))
    return channels


def _lines(watcher: Watcher, options: argparse.Namespace, say: Catalogue) -> list[str]:
    """Say what is watched, and what is promised."""
    from adray.runtime.arrivals import network_kind

    plan = watcher.plan
    lines = [say("watch at", folder=plan.folder, model=watcher.held.model.name, out=plan.out)]
    lines.append(watcher.held.model.judge.sentence(say.language))
    if plan.is_polled:
        reason = network_kind(plan.folder) or say("watch asked for")
        seconds = f"{plan.scan_seconds:g}"
        lines.append(say("watch polled", folder=plan.folder, seconds=seconds, reason=reason))
    return list(filter(None, lines))


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray watch",
        description="Judge each new image of a folder once, whatever happens meanwhile: a journal in the folder of the "
        "results says what was judged and what is still to be done with it. A bundle needs no torch.",
    )
    parser.add_argument("folder", help="the folder that images come into, with all below it")
    parser.add_argument(
        "--bundle", "--model", dest="model", metavar="MODEL", required=True, help=MODEL_HELP
    )
    parser.add_argument(
        "--out", required=True, help="folder of the journal, results.csv, results.jsonl and maps"
    )
    parser.add_argument(
        "--maps",
        choices=("none", "values"),
        default="values",
        help="anomaly maps of the image's own size as 16-bit PNG, or none (default: values)",
    )
    parser.add_argument(
        "--settle",
        type=number,
        default=0.5,
        metavar="SECONDS",
        help="for which a file must have stayed the same (default: 0.5)",
    )
    parser.add_argument(
        "--patience",
        type=number,
        default=10.0,
        metavar="SECONDS",
        help="after which a file that cannot be decoded is unreadable (default: 10)",
    )
    parser.add_argument(
        "--poll",
        type=positive_number,
        metavar="SECONDS",
        help="look at the folder this often; network shares are looked at every 2 s by themselves, in other folders "
        "the system tells of changes",
    )
    parser.add_argument(
        "--sort-into",
        metavar="FOLDER",
        help="copy images into its folders normal, anomalous and unreadable; no file is written over",
    )
    parser.add_argument(
        "--move", action="store_true", help="delete an image once its sorted copy is whole"
    )
    parser.add_argument(
        "--webhook",
        metavar="URL",
        help="address that each result is posted to as JSON, again and again until it has it",
    )
    parser.add_argument(
        "--webhook-token-file", metavar="FILE", help="a file with the token that is sent along"
    )
    parser.add_argument(
        "--mqtt",
        metavar="URL",
        help="mqtt://HOST[:PORT]/TOPIC or mqtts://... that each result is published to (QoS 1)",
    )
    parser.add_argument(
        "--mqtt-login-file", metavar="FILE", help="a file with USER:PASSWORD for the broker"
    )
    parser.add_argument(
        "--metrics", metavar="FILE", help="file of counts for Prometheus's textfile collector"
    )
    parser.add_argument(
        "--once", action="store_true", help="end when all that lies there is judged"
    )
    parser.add_argument("--threads", type=count, default=0, help="of the CPU (default: all)")
    add_model_options(parser)
    return parser
