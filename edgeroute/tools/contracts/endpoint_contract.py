"""Contract of endpoints: checks that the author of a protocol runs (`endpoint_contract`). Plays the server: sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, count
from typing import Any
from urllib.parse import unquote_to_bytes

from edgeroute.cloud.endpoint import HttpEndpoint, Talk, check_status
from edgeroute.cloud.http_backend import HttpBackend
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, CloudError
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply
from edgeroute.system.input_copies import copy_input
from edgeroute.tools.contracts.edge_contract import chain, check_all, equal, error_text, same, short, shown

Server = Callable[[Call], Reply]
MOST_CALLS = 100  # calls of a talk after which it counts as endless
RTOL = 1e-6  # relative tolerance between outputs
SECRET_LENGTH = 8  # minimum length of a credential's word that counts as secret; shorter ones are words such as Bearer
WORD = "quoted-by-nobody"
# Bodies of replies with status 200, as proxies, login pages and broken servers send them.
DAMAGED = (
    b"", b"{", b"[]", b"{}", b"null", b"1", b'"text"', b"<html>log in</html>", b"\x1f\x8b\x08", b"\xff\xfe\x00", b"[[[[[1]]]]]",
    b'{"error": {"message": "no"}}', *(form % WORD.encode() for form in (b"%s", b"%s 1", b"a %s", b'{"%s', b'{"%s": 1}')),
)  # fmt: skip
# Damaged bodies that no protocol can read but plain text or bytes, for which they differ.
UNREADABLE = (b"", b"<html>log in</html>", b"\x1f\x8b\x08")
QUOTABLE = 4  # minimum bytes of a body that is searched for in a probe; a shorter one may be part of it by chance


def endpoint_contract(endpoint: HttpEndpoint, samples: Sequence[Any], server: Server, *, bad: Sequence[Any] = ()) -> None:
    """Check that an endpoint keeps the contract of `edgeroute.cloud.endpoint.HttpEndpoint`, without a network.

    A talk ends, with one output for each input that the router can read: the same each time, alone, in a batch, and beside
    another talk. `encode` and `decode` agree with it. A damaged reply is `BadReply`, or another `CloudError`, which holds nothing
    of it; an input that cannot be encoded is `BadInput`. Inputs are not written to. `ping` and `health` end, and send no input.
    No text shows a credential: `Authorization`, or a header that is given as a `Secret`. An answer depends on the reply. Answers
    in pieces (`speak`) are not checked.

    Args:
        endpoint: an endpoint with a credential (`api_key=`), so that the check sees if it stays hidden.
        samples: two or more inputs that differ.
        server: function that plays the server: a call -> its `Reply`, with status 200, also to `ping` and `health`.
        bad: inputs that cannot be encoded, besides `object()`.

    Raises:
        ContractBroken: an AssertionError that lists all problems, and what to do.
        ValueError: fewer than two samples.
    """
    if len(samples) < 2:  # noqa: PLR2004 - to tell one from another
        raise ValueError(f"a contract is checked with two samples or more, not {len(samples)}")
    subject = _Checks(endpoint, samples, server, bad)
    checks = [
        ("members", subject.members),
        ("talk", subject.talks),
        ("batch", subject.batch),
        ("two at once", subject.beside),
        ("encode and decode", subject.encoded),
        ("damaged replies", subject.damaged),
        ("bad input", subject.refuses),
        ("inputs", subject.unwritten),
        ("ping and health", subject.probes),
        ("secrets", subject.secrets),
    ]
    check_all(str(getattr(endpoint, "name", endpoint)), checks, first={"members", "talk"}, what="endpoints")


class _Checks:
    """Checks of one endpoint on samples that it takes; each method yields a text for each problem."""

    def __init__(self, endpoint: HttpEndpoint, samples: Sequence[Any], server: Server, bad: Sequence[Any]) -> None:
        self.endpoint, self.server, self.bad = endpoint, server, [object(), *bad]
        self._samples = list(samples)
        self.texts: list[str] = []  # messages of its errors
        self.bodies: set[bytes] = set()  # bodies that were sent for the samples

    @property
    def samples(self) -> list[Any]:
        """Return copies of the samples."""
        return [copy_input(x) for x in self._samples]

    def members(self) -> Iterator[str]:
        """Check that the endpoint has the members that the router reads, and store its reader for later checks.

        Stops at the first that the other checks need.
        """
        wanted = ("talk", "encode", "decode", "ping", "health", "name", "where", "labels", "kind", "address")
        if lacking := [name for name in wanted if not hasattr(self.endpoint, name)]:
            yield f"it lacks {', '.join(lacking)}: see edgeroute.cloud.endpoint.HttpEndpoint"
            return
        if not isinstance(self.endpoint.address, Address):
            yield f"address is a {type(self.endpoint.address).__name__}: make it an Address of {Address.__module__}"
            return
        if not isinstance(self.endpoint.labels, tuple | None):
            yield f"labels is a {type(self.endpoint.labels).__name__}: make it a tuple, or None"
        self.reader = HttpBackend(self.endpoint.name, self.endpoint, "msp", None).reader
        self.alone = bool(getattr(self.endpoint, "one_by_one", False))

    def _hold_talk(self, talk: Talk, server: Server | None = None) -> tuple[list[Call], Any]:
        """Hold a talk to its end with a function that plays the server; sends nothing. Return the calls, and the talk's result.

        Raises what the talk raises; the error of a bad status (not for probes), which the talk does not see; RuntimeError after
        `MOST_CALLS` calls.
        """
        calls, reply = list[Call](), None
        try:
            while len(calls) < MOST_CALLS:
                call = next(talk) if reply is None else talk.send(reply)
                calls.append(call)
                reply = (server or self.server)(call)
                if not call.probe:
                    check_status(reply, self.endpoint.where)
        except StopIteration as end:
            return calls, end.value
        finally:
            talk.close()
        raise RuntimeError(f"a talk goes on after {MOST_CALLS} calls")

    def _answers(self, inputs: list[Any]) -> tuple[list[Call], list[Prediction]]:
        """Hold a talk about inputs; return its calls, and the predictions. Stores the bodies that were sent, for `probes`."""
        calls, outputs = self._hold_talk(self.endpoint.talk(inputs))
        self.bodies |= {bytes(call.body) for call in calls if call.body and not call.probe}
        return calls, self.reader.read_many(outputs, len(inputs))

    def talks(self) -> Iterator[str]:
        """Store the answers to the samples in `truth`, for later checks; yield a text for each that differs when asked again.

        Also for other calls the second time, and if all answers are equal although the replies to the samples differ. Replies
        that differ for one sample are no ground.
        """
        self.truth = [self._answers([x])[1][0] for x in self.samples]
        for x, truth in zip(self.samples, self.truth, strict=True):
            (calls, (once,)), (again, _) = self._answers([x]), self._answers([x])
            if not same(once, truth, RTOL):
                yield f"it answers {shown(truth)} to a sample, and {shown(once)} to it again: keep nothing of an input or a reply"
            if calls != again:
                yield f"it makes other calls of {short(x)} the second time: a request that is sent again has to be the same"
        first, *others = self.truth
        if all(same(other, first, RTOL) and equal(other.outputs, first.outputs, RTOL) for other in others):
            replies = [self._replies(x) for x in [*self.samples, *self.samples[:1]]]
            repeated = replies.pop()  # of the first sample: if it differs, replies differ by chance, as ids
            if repeated == replies[0] and any(other != replies[0] for other in replies):
                yield (
                    f"it answers {shown(first)} to every sample, although the server's replies differ: read them;"
                    " or, if they mean the same, give samples to which the server says something else"
                )

    def _replies(self, x: Any) -> list[bytes]:
        """Hold a talk about a sample, and return the bodies of the server's replies to its calls."""
        bodies = list[bytes]()

        def server(call: Call) -> Reply:
            bodies.append(bytes((reply := self.server(call)).body))
            return reply

        self._hold_talk(self.endpoint.talk([x]), server)
        return bodies

    def batch(self) -> Iterator[str]:
        """Check that samples get in a batch the answers that they get alone, in order; yields each that differs.

        A no-op for an endpoint with `one_by_one`.
        """
        if self.alone:
            return
        order = [*range(len(self.truth)), 0]
        _, answers = self._answers([self.samples[i] for i in order])
        for i, answer in zip(order, answers, strict=True):
            if not same(answer, self.truth[i], RTOL):
                yield (
                    f"alone sample {i} gets {shown(self.truth[i])}, and in a batch {shown(answer)}: one output per input, in"
                    " order; or set one_by_one = True"
                )

    def beside(self) -> Iterator[str]:
        """Check that two talks whose calls alternate answer as each did alone; one that never ends is not reported here."""
        talks = [self.endpoint.talk([x]) for x in self.samples[:2]]
        answers: dict[int, Any] = {}
        replies: list[Reply | None] = [None, None]
        for _ in range(MOST_CALLS):
            for i, talk in enumerate(talks):
                try:
                    if i not in answers:
                        replies[i] = self.server(talk.send(replies[i]))  # type: ignore[arg-type]  # the first is None
                except StopIteration as end:  # noqa: PERF203 - each in its turn
                    answers[i] = self.reader.read_many(end.value, 1)[0]
        for i, answer in answers.items():
            if not same(answer, self.truth[i], RTOL):
                text = shown(answer)
                yield f"beside another talk sample {i} gets {text}: keep what belongs to a talk in it, not in the endpoint"

    def encoded(self) -> Iterator[str]:
        """Check that `encode` and `decode`, which the outbox uses, agree with a talk; yields each sample that differs.

        Skipped where `encode` gives no call.
        """
        for x, truth in zip(self.samples, self.truth, strict=True):
            if (call := self.endpoint.encode([x])) is not None:
                (answer,) = self.reader.read_many(self.endpoint.decode(self.server(call), 1), 1)
                if not same(answer, truth, RTOL):
                    yield f"a talk gets {shown(truth)}, and decode of the reply to encode's call {shown(answer)}"

    def damaged(self) -> Iterator[str]:
        """Check that damaged replies, in place of each reply in turn, raise a `CloudError` that quotes nothing of them.

        A talk of several calls may recover. Yields other errors, quotes, and equal answers to different replies that cannot be
        read. The errors' texts are stored in `texts`, for `secrets`.
        """
        calls, _ = self._answers(self.samples[:1])
        taken = list[tuple[bytes, Prediction]]()
        for place, call in enumerate(calls):
            for body in (*DAMAGED, self.server(call).body[:-1]):
                try:
                    new_calls, outputs = self._hold_talk(self.endpoint.talk(self.samples[:1]), self._spoilt(place, body))
                    (answer,) = self.reader.read_many(outputs, 1)
                    if len(new_calls) == len(calls) == 1 and body in UNREADABLE:  # else it may have recovered
                        taken.append((body, answer))
                except CloudError as e:  # noqa: PERF203 - each reply by itself
                    self.texts.append(str(e))
                    if any(WORD in f"{cause} {cause.args} {vars(cause)}" for cause in chain(e)):
                        yield f"its {type(e).__name__}, or an error that it is chained to, quotes the reply: raise it later"
                except Exception as e:  # noqa: BLE001 - whatever an endpoint raises
                    yield f"it raised {error_text(e)} for a reply of {body[:20]!r}: raise BadReply"
        for (body, answer), (other, other_answer) in combinations(taken, 2):
            if body != other and same(answer, other_answer, RTOL):
                yield f"it answers {shown(answer)} to a reply of {body!r}, and to one of {other!r}: raise BadReply"
                return

    def _spoilt(self, place: int, body: bytes) -> Server:
        """Return the server with another body in its reply to the call number `place`."""
        seen = count()

        def server(call: Call) -> Reply:
            reply = self.server(call)
            return reply._replace(body=body) if next(seen) == place else reply

        return server

    def refuses(self) -> Iterator[str]:
        """Check that each input in `bad` raises BadInput; its text is stored in `texts`, for `secrets`."""
        for x in self.bad:
            try:
                self._hold_talk(self.endpoint.talk([x]))
            except BadInput as e:  # noqa: PERF203 - each input by itself
                self.texts.append(str(e))
            except Exception as e:  # noqa: BLE001 - whatever an endpoint raises
                yield f"it raised {error_text(e)} for {short(x)}: raise BadInput, which is no fault of the endpoint"
            else:
                yield f"it sent {short(x)}, which it cannot know how to write: raise BadInput"

    def unwritten(self) -> Iterator[str]:
        """Talk with the server about each sample; yields each sample that the talk has changed."""
        for i, x in enumerate(self.samples):
            self._answers([x])
            if not equal(x, self._samples[i], 0.0):
                yield f"it writes to its input (sample {i}): make a copy"

    def probes(self) -> Iterator[str]:
        """Check that `ping` and `health` end, call the server, and send nothing of earlier inputs; `health` in one call."""
        for name, talk in (("ping", self.endpoint.ping), ("health", self.endpoint.health)):
            calls, _ = self._hold_talk(talk())
            if not calls:
                yield f"{name} asks nothing, so it cannot tell whether the server is there"
            if any(self._quotes(call) for call in calls):
                yield f"{name} sends what an earlier request sent: it must hold nothing of a user's"
            if name == "health" and len(calls) > 1:
                yield f"health takes {len(calls)} calls: it is asked often, so have one"

    def _quotes(self, call: Call) -> bool:
        """Return True if the path or body of a call repeats a body that was sent for a sample; a short one has to be all."""
        there = (bytes(call.body), call.path.encode("utf-8", "surrogatepass"), unquote_to_bytes(call.path))
        return bytes(call.body) in self.bodies or any(
            body in part for body in self.bodies if len(body) >= QUOTABLE for part in there
        )

    def secrets(self) -> Iterator[str]:
        """Check that no text that may be logged (repr, name, where, errors of the checks before) shows a credential."""
        words = {word for value in self.endpoint.address.secrets() for word in value.split() if len(word) >= SECRET_LENGTH}
        for text in (repr(self.endpoint), self.endpoint.where, self.endpoint.name, *self.texts):
            if any(word in text for word in words):
                yield "a credential is in its repr, its name or a message: Address keeps it, so leave it there"
                return
