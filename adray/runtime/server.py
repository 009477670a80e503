"""Verdicts over HTTP: one process, some images at once, a bounded queue, a log before each answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from adray.runtime.judge import Held, NamedModel, facts_of
from adray.runtime.openapi import api_of, api_page
from adray.runtime.result_log import ResultLog
from adray.runtime.rows import Row, map_picture, row_of
from adray.runtime.server_input import Asked, Limits, Picture, asked_of, pictures_of
from adray.runtime.server_page import PAGE_HEADERS, drop_page
from adray.runtime.tally import Tally

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

_OPEN = ("/", "/docs", "/openapi.json", "/health")
"""What is given without a token: it says nothing of a product."""
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_UNREADABLE_STATUS = 422
_OTHER_IMAGE = "this Idempotency-Key came with another image before"


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    is_loopback: bool
    """Only programs of this machine reach the server."""
    token: str = ""
    """What a request has to bring; empty for nothing."""


@dataclass(frozen=True)
class Answer:
    """What was found of one picture."""

    row: Row
    """As it stands in the log."""
    anomaly_map: np.ndarray | None
    """(H, W), or None."""


class Server:
    """Answers requests by a model that may be replaced meanwhile.

    Args:
        held: the model.
        limits: of a request.
        access: who may ask.
        log: of the results, or None.
        texts: of the page, by language.
        reload_seconds: between two looks at the model's file; 0 for none.
    """

    def __init__(
        self,
        held: Held,
        limits: Limits,
        access: Access,
        log: ResultLog | None,
        texts: Mapping[str, Mapping[str, str]],
        reload_seconds: float = 2.0,
    ) -> None:
        self.held = held
        self.limits = limits
        self.access = access
        self.log = log
        self.texts = texts
        self.reload_seconds = reload_seconds
        self.tally = Tally()
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="judge")
        self._in_flight = 0
        self._running: dict[str, tuple[str, Future[Answer]]] = {}
        for row in log.recent if log is not None else ():
            self.tally.remember(str(row.get("verdict")), str(row.get("model")))

    def app(self) -> Starlette:
        """Give the application."""
        routes = [
            Route("/predict", self._guarded(self._predict), methods=["POST"]),
            Route("/health", self._guarded(self._health)),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/openapi.json", self._guarded(self._openapi)),
            Route("/docs", self._guarded(self._docs)),
            Route("/", self._guarded(self._page)),
        ]
        handlers = {HTTPException: self._refused, Exception: self._failed}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._life)

    # Requests

    def _guarded(self, handler: Handler) -> Handler:
        """Let a handler answer those alone who may ask."""

        async def guarded(request: Request) -> Response:
            self._check_site(request)
            if request.url.path not in _OPEN:
                self._check_token(request)
            response = await handler(request)
            if request.url.path == "/predict":
                self.tally.add_request(response.status_code)
            return response

        return guarded

    def _check_site(self, request: Request) -> None:
        """Refuse what another site's page makes a browser send.

        Raises:
            HTTPException: for an origin that is not this server, or a foreign name of it.
        """
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise HTTPException(403, "a page of another site may not ask this server")
        if self.access.is_loopback and _host_name(host) not in _LOCAL_NAMES:
            raise HTTPException(403, f"ask for localhost or 127.0.0.1, not for {host[:80]!r}")

    def _check_token(self, request: Request) -> None:
        """Refuse a request without the token.

        Raises:
            HTTPException: for another token, or none.
        """
        wanted = f"Bearer {self.access.token}".encode()
        given = request.headers.get("authorization", "").encode("utf-8", "replace")
        if self.access.token and not hmac.compare_digest(given, wanted):
            raise HTTPException(
                401,
                "the token is missing or wrong; send Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _predict(self, request: Request) -> Response:
        """Judge the pictures of a request, where there is room for it.

        Raises:
            HTTPException: with 429 where there is not, and for all that is wrong with it.
        """
        if self._in_flight >= self.limits.workers + self.limits.queue:
            raise HTTPException(429, "too many requests wait; try again", {"Retry-After": "1"})

        self._in_flight += 1
        jobs: list[Future[Answer]] = []
        try:
            return await asyncio.wait_for(self._answer(request, jobs), self.limits.seconds)
        except asyncio.TimeoutError as error:
            raise HTTPException(
                503,
                f"no answer within {self.limits.seconds:g} s; send less, or try again",
                {"Retry-After": "1"},
            ) from error
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            self._give_back(jobs)

    def _give_back(self, jobs: list[Future[Answer]]) -> None:
        """Make room for another request once no thread works on this one any more."""
        named = [job for _, job in self._running.values()]
        for job in jobs:
            if job not in named:
                job.cancel()
        working = [job for job in jobs if not job.done()]
        if not working:
            self._in_flight -= 1
            return

        # The last of them makes room, from its own thread.
        left = len(working)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            nonlocal left
            left -= 1
            self._in_flight -= not left

        for job in working:
            job.add_done_callback(lambda _: loop.call_soon_threadsafe(ended))

    async def _answer(self, request: Request, jobs: list[Future[Answer]]) -> Response:
        """Read, judge and answer.

        Args:
            request: with pictures.
            jobs: takes what is given to threads.
        """
        asked = asked_of(request)
        pictures = await pictures_of(request, self.limits)
        model = self.held.model
        for number, picture in enumerate(pictures, start=1):
            jobs.append(self._start(model, picture, asked, number))
        answers = [await asyncio.wrap_future(job) for job in jobs]

        if asked.as_picture:
            return _map_response(answers)
        rows = [_shown(answer, asked) for answer in answers]
        body = {"model": facts_of(model), "results": rows}
        unreadable = len(rows) == 1 and rows[0]["pred_score"] is None
        return JSONResponse(body, _UNREADABLE_STATUS if unreadable else 200)

    def _start(
        self, model: NamedModel, picture: Picture, asked: Asked, number: int
    ) -> Future[Answer]:
        """Give a picture to a thread, or find the thread that has it already.

        Raises:
            HTTPException: for a name of a request that came with another picture before.
        """
        if not asked.key:
            return self._pool.submit(self._judge, model, picture, asked, "")

        key = f"{asked.key}/{number}"
        sha256, running = self._running.get(key, (picture.sha256, None))
        if sha256 != picture.sha256:
            raise HTTPException(409, _OTHER_IMAGE)
        if running is not None:
            return running
        job = self._pool.submit(self._judge, model, picture, asked, key)
        self._running[key] = (sha256, job)
        loop = asyncio.get_running_loop()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._running.pop, key, None))
        return job

    def _judge(self, model: NamedModel, picture: Picture, asked: Asked, key: str) -> Answer:
        """Judge a picture in a thread, and note the result before anybody gets it.

        Raises:
            HTTPException: for raw numbers of another size, another picture under a known name, and
                a log that cannot be written.
        """
        known = self.log.known(key) if self.log is not None and key else None
        sha256 = picture.sha256
        if known is not None and known.get("sha256") != sha256:
            raise HTTPException(409, _OTHER_IMAGE)
        if known is not None and not asked.with_map:
            return Answer(known, None)

        start = time.perf_counter()
        source = picture.source(getattr(model.judge, "dtype", "uint8"))
        result = model.judge.predict(
            source, asked.with_map, asked.with_regions, self.limits.most_pixels
        )
        if known is not None:
            return Answer(known, result.anomaly_map)

        row = row_of(result, picture.name, sha256, model)
        if key:
            row["request"] = key
        self._note(row)
        self.tally.add_image(row["verdict"], time.perf_counter() - start, model.sha256)
        return Answer(row, result.anomaly_map)

    def _note(self, row: Row) -> None:
        """Write a row into the log.

        Raises:
            HTTPException: where it cannot be written, so that no verdict is given without its row.
        """
        if self.log is None:
            return
        try:
            self.log.add(row)
        except OSError as error:
            logger.error("the log cannot be written (%s)", error.strerror)
            raise HTTPException(
                507, f"the result cannot be logged ({error.strerror}); free the server's disk"
            ) from error

    # What else it says

    async def _health(self, _: Request) -> Response:
        """Say which model is in use, and whether a newer one was refused."""
        model = self.held.model
        may_tell = not self.access.token
        body: Row = {"status": "ok", "in_flight": self._in_flight}
        if may_tell:
            body["model"] = facts_of(model)
        body["model_failures"] = self.held.failures
        if may_tell:
            body["last_failure"] = self.held.last_failure
        return JSONResponse(body)

    async def _metrics(self, _: Request) -> Response:
        """Give the counts for Prometheus."""
        text = self.tally.text(
            self.held.model, in_flight=self._in_flight, model_failures=self.held.failures
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _openapi(self, _: Request) -> Response:
        """Give the description of the interface for programs."""
        return JSONResponse(api_of(self.limits))

    async def _docs(self, _: Request) -> Response:
        """Give the description of the interface for people. It loads nothing from elsewhere."""
        return HTMLResponse(api_page(api_of(self.limits)), headers=PAGE_HEADERS)

    async def _page(self, request: Request) -> Response:
        """Give the page that takes an image, in the language of the browser."""
        korean = request.headers.get("accept-language", "").lower().startswith("ko")
        language = "ko" if korean else "en"
        sentence = "" if self.access.token else self.held.model.judge.sentence(language)
        page = drop_page(language, self.texts[language], sentence, bool(self.access.token))
        return HTMLResponse(page, headers=PAGE_HEADERS)

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Answer a request that was refused, in one sentence."""
        assert isinstance(error, HTTPException)
        if request.url.path == "/predict":
            self.tally.add_request(error.status_code)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def _failed(self, request: Request, error: Exception) -> Response:
        """Answer a request on which the program itself failed. Starlette logs the error."""
        self.tally.add_request(500)
        kind = type(error).__name__
        return JSONResponse({"error": f"the server failed on this request ({kind})"}, 500)

    # Life

    @contextlib.asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        """Look after model and log for as long as the server runs."""
        hangup = asyncio.Event()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            # Another thread than the main one gets no signals.
            loop.add_signal_handler(signal.SIGHUP, hangup.set)
        watch = asyncio.create_task(self._watch_model(hangup))
        flush = asyncio.create_task(self._flush_log())
        try:
            yield
        finally:
            watch.cancel()
            flush.cancel()
            self._pool.shutdown(wait=True, cancel_futures=True)
            if self.log is not None:
                self.log.close()

    async def _watch_model(self, hangup: asyncio.Event) -> None:
        """Take a newer model where its file changed, and at once after SIGHUP."""
        timeout = self.reload_seconds or None
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(hangup.wait(), timeout)
            must_load = hangup.is_set()
            hangup.clear()
            said = await asyncio.to_thread(self.held.look, must_load)
            if said:
                logger.warning("%s", said)

    async def _flush_log(self) -> None:
        """Flush the log to the disk every second, which a killed process does not need."""
        while self.log is not None:
            await asyncio.sleep(1)
            try:
                await asyncio.to_thread(self.log.flush)
            except OSError as error:
                logger.error("the log cannot be flushed (%s)", error.strerror)


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(host: str) -> str:
    """Give the name in a header `Host`, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _shown(answer: Answer, asked: Asked) -> Row:
    """Give the result of a picture as its client gets it."""
    row = dict(answer.row)
    if not asked.with_map:
        return row
    row["map"] = None
    if answer.anomaly_map is not None:
        data, low, high = map_picture(answer.anomaly_map)
        row["map"] = {"png": base64.b64encode(data).decode("ascii"), "low": low, "high": high}
    return row


def _map_response(answers: list[Answer]) -> Response:
    """Give a map alone, with the verdict in headers.

    Raises:
        HTTPException: for several images, or one without a map.
    """
    if len(answers) != 1:
        raise HTTPException(
            406, f"{len(answers)} images have no one map; ask for JSON and map=true"
        )
    row = answers[0].row
    if answers[0].anomaly_map is None:
        reason = row["reason"] or "the model gives no maps"
        raise HTTPException(_UNREADABLE_STATUS if row["reason"] else 406, reason)
    data, low, high = map_picture(answers[0].anomaly_map)
    headers = {
        "X-Adray-Verdict": row["verdict"],
        "X-Adray-Score": f"{row['pred_score']:.9g}",
        "X-Adray-Map-Low": f"{low:.9g}",
        "X-Adray-Map-High": f"{high:.9g}",
    }
    return Response(data, media_type="image/png", headers=headers)
