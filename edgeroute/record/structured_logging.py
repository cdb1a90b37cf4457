"""Structured logging: an instrument that logs each request's end (`RequestLog`), a formatter as JSON lines (`JsonFormatter`)."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

from edgeroute.core.error_codes_and_texts import clean, printable
from edgeroute.core.reason_text_and_trace_record import error_code
from edgeroute.record.instrument_interface import Instrument, RequestEnded

log = logging.getLogger("edgeroute.requests")
LONGEST = 8000  # maximum characters of a message, and of a traceback
# Fields of a request's record (`extra=`).
FIELDS = ("request", "source", "leg", "reason", "degraded", "confidence", "latency_s", "error", "model", "status")


class RequestLog(Instrument):
    """Logs each request's end to the logger `edgeroute.requests`: its id, what answered, why, and how long it took.

    The fields are attributes of the record, as with `extra=`: `request` (the id), `source`, `leg`, `reason` (a code), `degraded`,
    `confidence`, `latency_s`, and `error` (a code) if there is no answer. No input, no value and no message of an error.

    Args:
        level: level of the records.
    """

    def __init__(self, level: int = logging.INFO) -> None:
        self.level = level

    def request_ended(self, ended: RequestEnded) -> None:
        """Log the request's end at `level`: the error's code, or the answer's route, confidence and latency; no texts."""
        if not log.isEnabledFor(self.level):
            return
        answer = ended.answer
        if answer is None:
            code = error_code(ended.error)
            log.log(self.level, "no answer: %s", code, extra={"request": ended.id, "error": code})
            return
        fields = {
            "request": ended.id, "source": answer.source, "leg": clean(answer.leg, 100), "reason": answer.reason_code,
            "degraded": answer.degraded, "confidence": _number(answer.confidence), "latency_s": round(answer.latency_s, 6),
        }  # fmt: skip
        log.log(self.level, "answered by %s: %s", fields["leg"], fields["reason"], extra=fields)


class JsonFormatter(logging.Formatter):
    """Formatter of a record as a line of JSON: `at`, `level`, `logger`, `message`, the fields of a request, and `traceback`.

    Other attributes of a record are left out: their contents are not known.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII JSON: time, level, logger, message, a request's fields, and a traceback's end.

        Texts are sanitised and truncated. Other attributes of the record are left out.
        """
        time_of_day = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": time_of_day, "level": record.levelname.lower(), "logger": record.name}
        line["message"] = clean(record.getMessage(), LONGEST)
        for name in FIELDS:
            if (value := getattr(record, name, None)) is not None:
                line[name] = clean(value, LONGEST) if isinstance(value, str) else value
        text = record.exc_text or (self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else "")
        if text:
            line["traceback"] = printable(text)[-LONGEST:]
        return json.dumps(line, default=str)


def _number(value: Any) -> float | None:
    """Return a confidence as JSON can have it; None if it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None
