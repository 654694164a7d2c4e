"""The HTTP interface of the web app: `POST /v1/classify`, `GET /health`, and `/docs`, which describes both.

    curl -F file=@clip.mp4 -F "labels=archery, yoga" http://127.0.0.1:7860/v1/classify
    curl -H "content-type: application/json" -d '{"url": "https://…/clip.mp4", "labels": ["archery", "yoga"]}' …

An error is `{"error": "one sentence"}` with a status that says whose it is: 400 labels or fields that make no sense,
408 the request came too slowly, 411 no Content-Length, 413 too large, 415 neither form
nor JSON, 422 a video that can't be read or is more than the limits allow, 503 too many wait, 504 it took too long.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from .processing.limits import Limits, RefusedError, candidates_of, check_megabytes, decode_base64
from .processing.video_source import HTTP
from .web_answers import Answers, OutOfTimeError

BLOCK = 1 << 20  # bytes of an upload that are copied at a time


class Score(BaseModel):
    """A label and how well it fits beside the others."""

    label: str
    score: float = Field(
        description="from 0 to 1; all add up to 1, with “none of these” if the checkpoint has a calibration"
    )
    similarity: float | None = Field(description="cosine of the video and the label; null for “none of these”")


class Segment(BaseModel):
    """A stretch of time of one best label."""

    start: float = Field(description="seconds")
    end: float = Field(description="seconds")
    label: str
    score: float = Field(description="the label's mean over the windows of the stretch")


class Classified(BaseModel):
    """What fits the video."""

    model: str
    seconds: float = Field(description="length of the video")
    scores: list[Score] = Field(description="best first; of a video longer than a window, means over its windows")
    segments: list[Segment] = Field(description="of a video longer than a window; empty for a shorter one")
    notes: list[str] = Field(description="what to know about the video or the labels, such as that the file is cut")


class Problem(BaseModel):
    """Why a request got no answer."""

    error: str = Field(description="one sentence")


class BadRequestError(Exception):
    """A request that gets no answer: the status, and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


_LABELS = {
    "description": "Labels: a list, or a text with commas or line breaks between them. Or {label: text or texts that "
    "describe it}.",
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {
            "type": "object",
            "additionalProperties": {
                "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]
            },
        },
    ],
}
_TOP_K = {"type": "integer", "minimum": 1, "description": "labels in the answer; all by default"}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "labels"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "the video file"},
                    "labels": {
                        "type": "string",
                        "description": "labels with commas or line breaks between them; a line `name: description` "
                        "describes one",
                    },
                    "top_k": _TOP_K,
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["labels"],
                "properties": {
                    "url": {"type": "string", "description": "http(s) URL of the video, or"},
                    "base64": {"type": "string", "description": "the video file in base64"},
                    "labels": _LABELS,
                    "top_k": _TOP_K,
                },
            }
        },
    },
}


def http_routes(answers: Answers, model_name: str) -> FastAPI:
    """An application of its own, whose `routes` another one may take in.

    Args:
        answers: What answers.
        model_name: What the answers call the model.
    """
    api = FastAPI(
        title="MoTE",
        description=f"Which of these labels fits the video? Model: {model_name}. {describe_limits(answers.limits)}",
        version="1",
        redoc_url=None,
    )
    turn = anyio.CapacityLimiter(answers.concurrency)
    waiting = 0

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server answers, with which model, and how many requests are at work or wait."""
        return {"status": "ok", "model": model_name, "requests": waiting}

    @api.post(
        "/v1/classify",
        response_model=Classified,
        responses={code: {"model": Problem} for code in (400, 408, 411, 413, 415, 422, 503, 504)},
        openapi_extra={"requestBody": _BODY},
    )
    async def classify(request: Request) -> Any:
        """Score a video against labels."""
        nonlocal waiting
        if waiting >= answers.limits.max_waiting + answers.concurrency:
            return _problem(503, f"{waiting} requests wait already: come again later.")
        waiting += 1
        try:
            with tempfile.TemporaryDirectory(prefix="mote-request-") as folder:
                video, name, candidates, top_k = await _read_request(request, Path(folder), answers.limits)
                return await anyio.to_thread.run_sync(
                    _answer, answers, video, name, candidates, top_k, model_name, limiter=turn
                )
        except BadRequestError as error:
            return _problem(error.status, str(error))
        except OutOfTimeError as error:
            return _problem(504, str(error))
        except RefusedError as error:
            return _problem(422, str(error))
        finally:
            waiting -= 1

    return api


def describe_limits(limits: Limits) -> str:
    """The limits in one sentence."""
    return (
        f"Videos of up to {limits.max_seconds:g} s and {limits.max_megabytes:g} MB, up to {limits.max_labels} labels "
        f"of {limits.max_letters} letters, {limits.max_working_seconds:g} s of work."
    )


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _answer(
    answers: Answers, video: str, name: str | None, candidates: Mapping, top_k: int | None, model_name: str
) -> Classified:
    answer = answers.finish(video, candidates, name)
    return Classified(
        model=model_name,
        seconds=answer.seconds,
        scores=[Score(**row) for row in answer.rows[:top_k]],
        segments=[Segment(**segment) for segment in answer.segments],
        notes=answer.notes,
    )


async def _read_request(
    request: Request, folder: Path, limits: Limits
) -> tuple[str, str | None, dict[str, tuple[str, ...]], int | None]:
    """Path or URL of the video, its name, the candidates, and how many labels are wanted."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise BadRequestError(415, "Send a form with a file (multipart/form-data), or JSON (application/json).")
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise BadRequestError(411, "Say how long the request is, by a Content-Length.")
    is_form = kind == "multipart/form-data"
    megabytes = limits.max_megabytes + 1 if is_form else limits.max_base64_megabytes  # 1 for what is around the file
    if int(length) > megabytes * 1e6:
        how = "" if is_form else " of JSON; send a larger file as a form"
        raise BadRequestError(
            413, f"The request has {int(length) / 1e6:.0f} MB: this app takes up to {megabytes:g} MB{how}."
        )
    try:
        async with asyncio.timeout(limits.max_working_seconds):
            read = _read_form if is_form else _read_json
            video, name, labels, top_k = await read(request, folder, limits)
    except TimeoutError as error:
        seconds = f"{limits.max_working_seconds:g} s"
        raise BadRequestError(408, f"The request takes more than {seconds} to arrive: send it faster.") from error
    return video, name, _candidates(labels, limits), _top_k(top_k)


async def _read_form(request: Request, folder: Path, limits: Limits) -> tuple[str, str, Any, Any]:
    try:
        form = await request.form(max_files=1, max_fields=8)
    except MultiPartException as error:
        raise BadRequestError(400, f"The form can't be read ({error.message}).") from error
    except Exception as error:  # Starlette turns the above into an HTTP error within an application
        raise BadRequestError(400, f"The form can't be read ({getattr(error, 'detail', error)}).") from error
    try:
        _check_fields(form, ("file", "labels", "top_k"))
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise BadRequestError(400, "The form holds no file: send one as the field `file`.")
        check_megabytes(upload.size or 0, limits)
        name = Path((upload.filename or "video").replace("\\", "/")).name[:200] or "video"
        path = folder / "video"
        with path.open("wb") as copy:
            while block := await upload.read(BLOCK):
                copy.write(block)
        return str(path), name, form.get("labels"), form.get("top_k")
    finally:
        await form.close()


async def _read_json(request: Request, folder: Path, limits: Limits) -> tuple[str, str | None, Any, Any]:
    try:
        given = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequestError(400, f"The request is no JSON ({error}).") from error
    if not isinstance(given, dict):
        raise BadRequestError(400, "The request must be a JSON object.")
    _check_fields(given, ("url", "base64", "labels", "top_k"))
    url, encoded = given.get("url"), given.get("base64")
    if (url is None) == (encoded is None):
        raise BadRequestError(400, "Name the video by `url`, or send it as `base64`: one of them.")
    if url is not None:
        if not isinstance(url, str) or not url.startswith(HTTP) or len(url) > 4096:
            raise BadRequestError(400, "url must be the http(s) address of a video.")
        return url, None, given.get("labels"), given.get("top_k")
    if not isinstance(encoded, str):
        raise BadRequestError(400, "base64 must be a text.")
    try:
        content = decode_base64(encoded)
    except RefusedError as error:
        raise BadRequestError(400, str(error)) from error
    path = folder / "video"
    path.write_bytes(content)
    return str(path), "the video", given.get("labels"), given.get("top_k")


def _check_fields(given: Any, known: tuple[str, ...]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise BadRequestError(400, f"There is no field {unknown[0][:80]!r}: this takes {', '.join(known)}.")


def _candidates(labels: Any, limits: Limits) -> dict[str, tuple[str, ...]]:
    try:
        return candidates_of(labels, limits)
    except RefusedError as error:
        raise BadRequestError(400, str(error)) from error


def _top_k(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, (int, str)) and not isinstance(value, bool) and str(value).isdecimal() and int(value) > 0:
        return int(value)
    raise BadRequestError(400, f"top_k is {str(value)[:40]!r}: pass a number of labels from 1 on.")


__all__ = ["describe_limits", "http_routes"]
