"""Pictures that explain one thing each, for docs/figures: `python website/draw.py NAME`."""

from __future__ import annotations

import numpy as np
from sheet import GRID, INK, PAPER, PLAIN, ROOT, SOFT, Sheet

from edgeroute.tools.state_colours_and_marks import STATES


def states() -> Sheet:
    """The states of an answer, as everything shows them: colour, hatch, mark, word; and what each means."""
    sheet = Sheet(520, 302, "The six states of an answer")
    for i, state in enumerate(STATES.values()):
        y = 14 + 47 * i
        sheet.box(14, y, 116, 38, state.word, state.word)
        sheet.text(144, y + 24, state.meaning, size=13)
    return sheet


def modes() -> Sheet:
    """The four modes: who is asked, in which order, and what is in reserve."""
    sheet = Sheet(520, 330, "The four modes: prefer_edge, only_edge, prefer_cloud and only_cloud")
    rows = (
        ("prefer_edge", ("edge", "the edge", "sure: final"), ("cloud", "the cloud", "if not sure"), "the edge's stands"),
        ("only_edge", ("edge", "the edge", "always final"), None, "nothing is sent"),
        ("prefer_cloud", ("cloud", "the cloud", "if it answers"), ("edge", "the edge", "in reserve"), "the edge's stands"),
        ("only_cloud", ("cloud", "the cloud", "always"), None, "an error"),
    )
    sheet.text(150, 24, "asked first", size=13, ink=SOFT)
    sheet.text(285, 24, "then", size=13, ink=SOFT)
    sheet.text(396, 24, "if the cloud fails", size=13, ink=SOFT)
    for i, (name, first, then, last) in enumerate(rows):
        y = 36 + 72 * i
        sheet.text(14, y + 34, name, bold=True)
        for x, box in ((128, first), (262, then)):
            if box:
                side, *lines = box
                sheet.box(x, y, 116, 56, side, *lines)
        if then:
            sheet.arrow((244, y + 28), (262, y + 28))
        sheet.text(396, y + 34, last, size=13)
    return sheet


def deadline() -> Sheet:
    """Two requests on a time line: one whose cloud is retried, one whose cloud is started early as a hedge."""
    sheet = Sheet(520, 400, "A deadline over edge, retries and reply; and the same with a hedge")
    left, right = 76, 470

    def x(ms: float) -> float:
        return left + ms / 200 * (right - left)

    def lane(y: float, name: str) -> None:
        sheet.text(14, y + 19, name, size=13, ink=SOFT)

    def bar(y: float, begin: float, end: float, state: str, text: str) -> None:
        sheet.box(x(begin), y, x(end) - x(begin), 28, state, text, size=13)

    sheet.text(14, 26, "A retry", bold=True)
    lane(42, "edge")
    bar(42, 0, 40, "edge", "unsure")
    lane(82, "cloud")
    bar(82, 40, 74, "cloud", "503")
    sheet.text((x(74) + x(100)) / 2, 101, "pause", middle=True, size=13, ink=SOFT)
    bar(82, 100, 168, "cloud", "retry: answered")
    sheet.arrow((x(168), 96), (x(168), 138))
    sheet.text(x(168), 154, "the answer", middle=True, size=13)
    sheet.text(14, 206, "A hedge", bold=True)
    lane(222, "edge")
    bar(222, 0, 96, "edge", "slow, and then sure")
    lane(262, "cloud")
    bar(262, 60, 96, "cloud", "hedge")
    sheet.text(x(64), 305, "cancelled", size=13, ink=SOFT)
    sheet.arrow((x(96), 236), (x(104), 236), (x(104), 312))
    sheet.text(x(104) - 8, 328, "the first accepted answer", size=13)
    sheet.arrow((x(60), 312), (x(60), 292))
    sheet.text(x(60) + 12, 328, "hedge_after", size=13, ink=SOFT, end=True)
    for top, bottom in ((36, 160), (216, 340)):
        sheet.line([(x(200), top), (x(200), bottom)], INK, width=2)
    sheet.text(506, 26, "deadline", size=13, bold=True, end=True)
    sheet.arrow((left, 362), (506, 362))
    for ms in (0, 50, 100, 150, 200):
        sheet.text(x(ms), 382, f"{ms} ms", middle=True, size=13, ink=SOFT)
    return sheet


def refine() -> Sheet:
    """The answers that `refine` yields."""
    sheet = Sheet(520, 330, "refine yields a provisional answer at once, and a final one later")
    sheet.box(14, 130, 96, 58, "edge", "edge", "answers")
    sheet.arrow((110, 145), (134, 60), (152, 60))
    sheet.text(60, 92, "sure", size=13, ink=SOFT)
    sheet.box(152, 32, 354, 56, "edge", "one answer, final", "nothing was sent")
    sheet.arrow((110, 172), (134, 196), (152, 196))
    sheet.text(44, 216, "not sure", size=13, ink=SOFT)
    sheet.box(152, 160, 140, 72, PLAIN, "provisional", "shown at once;", "the cloud works", dashed=True)
    for y, *told in (
        (108, "cloud", "confirmed", "the cloud says the same"),
        (176, "cloud", "replaced", "by the cloud's answer"),
        (244, "degraded", "degraded", "away, late or held"),
    ):
        sheet.arrow((292, 196), (310, 196), (310, y + 28), (328, y + 28))
        sheet.box(328, y, 178, 56, *told)
    sheet.text(417, 320, "final", middle=True, size=13)
    return sheet


def breaker() -> Sheet:
    """The states of a circuit breaker."""
    sheet = Sheet(520, 360, "The states of the circuit breaker of one endpoint")
    sheet.box(14, 30, 170, 60, PLAIN, "closed", "requests are sent")
    sheet.box(336, 30, 170, 60, PAPER, "open", "nothing is sent", line=INK)
    sheet.box(336, 250, 170, 60, PLAIN, "half-open", "one probe, no user data")
    sheet.box(14, 250, 170, 60, PLAIN, "closed on trial", "requests are sent", dashed=True)
    sheet.arrow((184, 50), (336, 50))
    sheet.text(260, 42, "three faults in a row", middle=True, size=13, ink=SOFT)
    sheet.arrow((400, 90), (400, 250))
    sheet.text(392, 200, "5 s to 5 min later, or", size=13, ink=SOFT, end=True)
    sheet.text(392, 218, "the network is back", size=13, ink=SOFT, end=True)
    sheet.arrow((460, 250), (460, 90))
    sheet.text(466, 150, "it", size=13, ink=SOFT)
    sheet.text(466, 166, "fails", size=13, ink=SOFT)
    sheet.arrow((336, 280), (184, 280))
    sheet.text(260, 300, "the probe succeeds", middle=True, size=13, ink=SOFT)
    sheet.arrow((60, 250), (60, 90))
    sheet.text(68, 150, "a request", size=13, ink=SOFT)
    sheet.text(68, 168, "succeeds", size=13, ink=SOFT)
    sheet.arrow((150, 250), (200, 214), (336, 84))
    sheet.text(226, 176, "one fault", size=13, ink=SOFT, end=True)
    sheet.text(260, 344, "Each time it opens anew, it stays open for twice as long.", middle=True, size=13, ink=SOFT)
    return sheet


def gate() -> Sheet:
    """The checks that an input passes before its first byte leaves, in order, and what stops it."""
    sheet = Sheet(520, 520, "The gate: what an input passes before it leaves the device, in order")
    steps = (
        ("mode and rules", "only_edge: no leg that could send"),
        ("data class", "no permit: no leg that could send"),
        ("view", "it fails: nothing is sent"),
        ("consent", "anything but True: nothing is sent"),
        ("redaction", "it fails: nothing is sent"),
        ("breaker, rates, turns", "held: the edge's answer stands"),
        ("limits", "spent, or not known: held"),
        ("ledger", "a line on disk, or nothing is sent"),
    )
    sheet.text(120, 24, "an input that is to be deferred", middle=True)
    for i, (name, stop) in enumerate(steps):
        y = 44 + 54 * i
        sheet.arrow((120, y - 14), (120, y))
        sheet.box(14, y, 212, 38, PLAIN, name)
        sheet.arrow((226, y + 19), (258, y + 19), dashed=True)
        sheet.text(266, y + 24, stop, size=13)
    sheet.arrow((120, 460), (120, 474))
    sheet.box(14, 474, 212, 34, "cloud", "first byte to the cloud")
    sheet.text(266, 496, "again for each attempt: limits, ledger", size=13, ink=SOFT)
    return sheet


def outbox() -> Sheet:
    """The states of an entry of the outbox."""
    sheet = Sheet(520, 380, "The states of an entry of the outbox")
    sheet.box(14, 20, 206, 58, "waiting", "the edge's answer", "final = False, queued")
    sheet.arrow((117, 78), (117, 120))
    sheet.text(125, 104, "on disk", size=13, ink=SOFT)
    sheet.box(14, 120, 206, 58, "waiting", "waiting", "sent when the cloud is back")
    sheet.arrow((220, 134), (244, 134), (244, 100), (184, 100), (184, 120), dashed=True)
    sheet.text(252, 104, "away again, held, late:", size=13, ink=SOFT)
    sheet.text(252, 122, "wait longer, at random", size=13, ink=SOFT)
    sheet.arrow((117, 178), (117, 220))
    sheet.text(125, 204, "the cloud answers", size=13, ink=SOFT)
    sheet.box(14, 220, 206, 58, "cloud", "answered", "on_late is still due")
    sheet.arrow((117, 278), (117, 320))
    sheet.text(125, 304, "on_late returns", size=13, ink=SOFT)
    sheet.box(14, 320, 206, 44, PLAIN, "deleted; its id is kept")
    sheet.arrow((220, 160), (320, 160), (320, 196))
    sheet.text(256, 178, "refused", size=13, ink=SOFT)
    sheet.box(300, 196, 206, 76, PAPER, "dead letter", "404, a bad reply, a class", "that may no longer leave", line=INK)
    sheet.arrow((480, 196), (480, 152), (228, 152))
    sheet.text(406, 146, "outbox retry", size=13, ink=SOFT)
    sheet.arrow((403, 272), (403, 320))
    sheet.text(395, 300, "ttl over, or dropped", size=13, ink=SOFT, end=True)
    sheet.box(300, 320, 206, 44, PLAIN, "counted by cause")
    return sheet


def text_stream() -> Sheet:
    """A stream that is decided once, by its first tokens."""
    sheet = Sheet(520, 310, "A stream is decided by its first tokens")
    sheet.text(14, 28, "sure", bold=True)
    sheet.text(14, 140, "not sure", bold=True)
    for y in (40, 152):
        for i in range(4):
            sheet.box(90 + 26 * i, y, 22, 28, "edge", dashed=True)
        sheet.text(90, y + 46, "held back", size=13, ink=SOFT)
        sheet.line([(196, y - 14), (196, y + 56)], INK, width=1.6, dashed=True)
    sheet.text(196, 20, "decide_after = 4 tokens", middle=True, size=13, ink=SOFT)
    for i in range(11):
        sheet.box(204 + 26 * i, 40, 22, 28, "edge")
    sheet.text(204, 86, "all of it is shown, at once, and as it comes", size=13)
    for i in range(3):
        sheet.box(204 + 26 * i, 152, 22, 28, "edge", dashed=True)
    sheet.text(290, 171, "stopped at the cloud's first piece", size=13, ink=SOFT)
    sheet.arrow((196, 208), (196, 240), (282, 240))
    sheet.text(204, 232, "the cloud", size=13, ink=SOFT)
    for i in range(8):
        sheet.box(282 + 26 * i, 226, 22, 28, "cloud")
    sheet.text(282, 272, "shown as it comes", size=13)
    sheet.text(14, 298, "If the cloud fails or is late, the edge's answer goes on, degraded.", size=13, ink=SOFT)
    return sheet


def trials() -> Sheet:
    """From shadow to a hidden trial to a model in force, and back."""
    sheet = Sheet(520, 430, "From shadow to a hidden trial to a model in force, and back")
    steps = (
        ("cloud", "shadow", "the cloud answers everything;", "the edge runs, unseen, and is compared"),
        ("edge", "in force", "a certificate from the comparisons;", "the edge answers what it is sure of"),
        (PLAIN, "a hidden trial beside it", "a new model runs in audits, unseen", ""),
        ("edge", "switched", "recertify: its certificate holds,", "the policy is rewritten"),
    )
    for i, (fill, *lines) in enumerate(steps):
        y = 16 + 104 * i
        sheet.box(14, y, 300, 72, fill, *filter(None, lines))
    for i, text in enumerate(("calibrate --audited", "a new model", "enough audits")):
        sheet.arrow((164, 88 + 104 * i), (164, 120 + 104 * i))
        sheet.text(174, 109 + 104 * i, text, size=13, ink=SOFT)
    sheet.arrow((314, 364), (420, 364), (420, 156), (314, 156), ink=INK)
    sheet.text(412, 262, "an alarm:", size=13, end=True)
    sheet.text(412, 280, "rolled back", size=13, end=True)
    sheet.text(506, 40, "callers see the cloud", size=13, ink=SOFT, end=True)
    sheet.text(506, 58, "alone", size=13, ink=SOFT, end=True)
    return sheet


def confidence() -> Sheet:
    """How sure the shipped edge is of right and of wrong answers, from models/fashion/validation.npz."""
    from edgeroute.confidence import msp

    with np.load(ROOT / "models" / "fashion" / "validation.npz") as seen:
        edge, labels = seen["edge_logits"], seen["labels"]
    score, right = msp(edge), edge.argmax(1) == labels
    sheet = Sheet(520, 300, "Confidences of right and wrong answers of the shipped edge, and a threshold")
    left, bottom, w, h = 56, 240, 440, 190
    edges = np.linspace(0.3, 1, 15)
    counts = [np.histogram(score[rows], edges)[0] for rows in (right, ~right)]
    top = 3.7

    def y(count: float) -> float:
        return round(bottom - float(np.log10(max(count, 1))) / top * h, 1)

    for power in range(4):
        sheet.line([(left, y(10**power)), (left + w, y(10**power))], GRID, width=1)
        sheet.text(left - 8, y(10**power) + 5, f"{10**power:,}", size=13, ink=SOFT, end=True)
    step = w / len(counts[0])
    for i, (good, bad) in enumerate(zip(*counts, strict=True)):
        for count, shift, fill, line in ((good, 3, PLAIN, SOFT), (bad, step / 2, INK, INK)):
            if count:
                x = round(left + i * step + shift, 1)
                sheet.box(x, y(count), round(step / 2 - 3, 1), round(bottom - y(count), 1), fill, line=line)
    for value in (0.3, 0.5, 0.7, 0.9, 1.0):
        sheet.text(left + (value - 0.3) / 0.7 * w, bottom + 20, f"{value:.1f}", middle=True, size=13, ink=SOFT)
    cut = left + (0.64 - 0.3) / 0.7 * w
    sheet.line([(cut, 36), (cut, bottom)], INK, width=2, dashed=True)
    sheet.text(cut, 28, "threshold 0.64", middle=True, bold=True)
    sheet.text(cut - 12, 56, "deferred", size=13, ink=SOFT, end=True)
    sheet.text(cut + 12, 56, "accepted", size=13, ink=SOFT)
    caption = f"confidence (msp) of {len(score):,} images; pale: right, dark: wrong"
    sheet.text(left + w / 2, bottom + 44, caption, middle=True, size=13, ink=SOFT)
    return sheet


def ladder() -> Sheet:
    """Which of three codecs is sent, by the time that is left."""
    sheet = Sheet(520, 300, "A ladder of codecs: the best one that is predicted to arrive in time is sent")
    codecs = {"png": 190, "jpeg:95": 110, "jpeg:50": 60}
    left, scale = 116, 1.2
    sheet.text(left, 24, "predicted time of the call; dashed: 80 % of the time left", size=13, ink=SOFT)
    for i, (time_ms, sent, why) in enumerate(
        ((300, "png", "sent"), (150, "jpeg:95", "sent"), (50, "jpeg:50", "sent: the floor"))
    ):
        y, limit = 40 + 84 * i, left + 0.8 * time_ms * scale
        sheet.text(14, y + 38, f"{time_ms} ms left", bold=True)
        for j, (codec, call_ms) in enumerate(codecs.items()):
            chosen, top = codec == sent, y + 22 * j
            sheet.box(left, top, call_ms * scale, 18, SOFT if chosen else PLAIN)
            label = f"{codec}, {why}" if chosen else codec
            end = left + call_ms * scale + 8
            label_x = limit + 8 if end < limit < end + 8 * len(label) else end
            sheet.text(label_x, top + 14, label, size=13, bold=chosen, ink=INK if chosen else SOFT)
        sheet.line([(limit, y - 6), (limit, y + 68)], INK, width=1.6, dashed=True)
    return sheet


def frames() -> Sheet:
    """A camera that is faster than the edge, and the cloud's answers that follow."""
    sheet = Sheet(520, 310, "The newest frame wins: frames, runs of the edge, calls of the cloud, updates")
    left, period, run = 70, 36, 82
    rows = {"frames": 40, "edge": 96, "cloud": 152, "shown": 214}
    for name, y in rows.items():
        sheet.text(14, y + 19, name, size=13, ink=SOFT)
    taken = (0, 3, 5, 8)
    for i in range(11):
        x, fill = left + i * period, "edge" if i in taken else PLAIN
        sheet.box(x, rows["frames"], 28, 28, fill, dashed=i not in taken)
        sheet.text(x + 14, rows["frames"] + 19, str(i), middle=True, size=13, ink=INK if i in taken else SOFT)
    sheet.text(left, 28, "dashed: replaced by a newer frame; frame 3 is deferred", size=13, ink=SOFT)
    for j, i in enumerate(taken):
        x = left + 14 + j * (run + 14)
        sheet.box(x, rows["edge"], run, 28, "edge", f"frame {i}", size=13)
        sheet.arrow((x + run, rows["edge"] + 28), (x + run, rows["shown"]))
        sheet.box(x + run - 22, rows["shown"], 44, 28, "edge", str(i), dashed=i == 3)  # noqa: PLR2004 - the one in doubt
    x = left + 14 + 2 * run + 14
    sheet.box(x + 8, rows["cloud"], 138, 28, "cloud", "frame 3")
    sheet.arrow((x + 146, rows["cloud"] + 28), (x + 146, rows["shown"] + 40))
    sheet.text(x + 146, rows["shown"] + 56, "3, final", middle=True, size=13)
    sheet.text(left, 296, "A slow edge, or program, gets fewer updates, and no old ones.", size=13, ink=SOFT)
    return sheet


def gateway() -> Sheet:
    """Programs of a device, the gateway in front of its router, and the two models."""
    sheet = Sheet(520, 280, "The gateway: programs in any language ask the router on this device")
    for i, name in enumerate(("OpenAI's client", "curl, LangChain", "Open WebUI", "Triton's clients")):
        sheet.box(14, 20 + 58 * i, 130, 42, PLAIN, name)
        sheet.arrow((144, 41 + 58 * i), (184, 128))
    sheet.box(184, 78, 160, 100, PLAIN, "the gateway", "/v1 and /v2 on", "127.0.0.1, a token,", "one policy")
    sheet.arrow((344, 106), (386, 62))
    sheet.arrow((344, 150), (386, 194))
    sheet.box(386, 32, 120, 60, "edge", "the edge", "on this device")
    sheet.box(386, 164, 120, 60, "cloud", "the cloud", "if it may leave")
    sheet.line([(366, 130), (506, 130)], SOFT, width=1.3, dashed=True)
    sheet.text(506, 122, "device", size=13, ink=SOFT, end=True)
    sheet.text(506, 148, "elsewhere", size=13, ink=SOFT, end=True)
    sheet.text(160, 262, "An answer says its source, confidence and reason.", size=13, ink=SOFT)
    return sheet


def rules() -> Sheet:
    """A rule on the battery, with its two levels, over a course of the charge."""
    sheet = Sheet(520, 270, "A rule comes into force below one level and ends above another")
    left, top, w, h = 60, 30, 446, 150

    def at(hour: float, share: float) -> tuple[float, float]:
        return left + hour / 12 * w, top + (0.5 - share) / 0.5 * h

    for share, name in ((0.3, "leave 30 %"), (0.2, "enter 20 %")):
        sheet.line([at(0, share), at(12, share)], SOFT, width=1.3, dashed=True)
        sheet.text(*at(8.7, share + 0.02), name, size=13, ink=SOFT)
    hours = (0, 2, 3.5, 4, 4.7, 5.4, 6.2, 7, 9, 10, 12)
    shares = (0.45, 0.3, 0.19, 0.16, 0.23, 0.18, 0.25, 0.31, 0.46, 0.42, 0.27)
    sheet.line([at(*point) for point in zip(hours, shares, strict=True)], INK, width=2.4)
    for share in (0, 0.25, 0.5):
        sheet.text(left - 10, at(0, share)[1] + 5, f"{100 * share:.0f} %", size=13, ink=SOFT, end=True)
    begin, end = at(3.36, 0)[0], at(6.87, 0)[0]
    sheet.box(begin, 196, end - begin, 30, "edge", "only_edge")
    sheet.text(left, 216, "the policy's mode", size=13, ink=SOFT)
    sheet.text(end + 10, 216, "the policy's mode", size=13, ink=SOFT)
    sheet.text(left, 22, "the battery's charge", size=13, ink=SOFT)
    sheet.text(left, 254, "Between the levels the rule stays as it is.", size=13, ink=SOFT)
    return sheet


def publish() -> Sheet:
    """A version of a model on its way from the publisher to calls on a device."""
    sheet = Sheet(520, 470, "From the publisher to the device: publish, sign, pull, try, activate, and back")
    sheet.box(14, 20, 150, 58, PLAIN, "publish", "model, card, canaries")
    sheet.arrow((164, 49), (190, 49))
    sheet.box(190, 20, 140, 58, PLAIN, "sign", "keys/models.pem")
    sheet.arrow((330, 49), (356, 49))
    sheet.box(356, 20, 150, 58, PAPER, "catalog", "any server, or a stick")
    sheet.line([(14, 98), (506, 98)], SOFT, width=1.3, dashed=True)
    sheet.text(14, 92, "publisher", size=13, ink=SOFT)
    sheet.text(14, 116, "device", size=13, ink=SOFT)
    steps = (
        ("the list", "signature, expiry, not older", "nothing changes"),
        ("the files", "size, hash, room on the disk", "nothing changes"),
        ("loaded and warmed up", "runtime, card", "refused"),
        ("canary inputs", "the right answers", "refused"),
        ("active, on trial", "200 runs, no alarm", "rolled back"),
    )
    sheet.arrow((431, 78), (431, 116), (135, 116), (135, 130))
    for i, (name, check, wrong) in enumerate(steps):
        y = 130 + 66 * i
        last = i == len(steps) - 1
        sheet.box(14, y, 242, 48, PLAIN, name, check, line=INK if last else SOFT)
        sheet.arrow((256, y + 24), (300, y + 24), dashed=True)
        sheet.text(308, y + 29, wrong, size=13)
        if not last:
            sheet.arrow((135, y + 48), (135, y + 66))
    sheet.text(506, 460, "The version before answers meanwhile.", size=13, ink=SOFT, end=True)
    return sheet


def fleet() -> Sheet:
    """The parts of a fleet and where they run, for one device, a thousand and a million."""
    sheet = Sheet(520, 640, "A fleet of one, a thousand and a million devices: what runs where, and what it costs")
    for y, count, *lines in (
        (14, "1 device", "own tests, alarms and limits", "nothing is sent"),
        (132, "1,000 devices", "a digest a day each", "20 MB, 30,000 requests a month"),
        (384, "1,000,000 devices", "a digest a day each", "20 GB, 30 million requests a month"),
    ):
        sheet.box(14, y, 250, 78, PLAIN, count, *lines)
    sheet.text(282, 48, "the state folder is all there is;", size=13, ink=SOFT)
    sheet.text(282, 66, "an alarm takes months", size=13, ink=SOFT)
    sheet.line([(14, 112), (506, 112)], SOFT, width=1.3, dashed=True)
    sheet.line([(14, 364), (506, 364)], SOFT, width=1.3, dashed=True)
    for y, store, owner, policies, alarm in (
        (132, ("a folder or broker", "or a bucket: $0.15"), "a laptop, once a day", "a folder behind any web server", "next day"),
        (384, ("a bucket", "30 million PUT: $150"), "one server, once a day", "the same folder, behind a CDN", "next day"),
    ):
        sheet.box(316, y, 190, 78, PAPER, *store)
        sheet.arrow((264, y + 39), (316, y + 39))
        sheet.text(290, y + 31, "up", middle=True, size=13, ink=SOFT)
        sheet.box(316, y + 122, 190, 92, PLAIN, "edgeroute fleet", owner, "collect, report,", "alarm, promote")
        sheet.arrow((411, y + 78), (411, y + 122))
        sheet.text(420, y + 105, alarm, size=13, ink=SOFT)
        sheet.box(14, y + 136, 250, 64, PLAIN, "signed policies", policies)
        sheet.arrow((316, y + 168), (264, y + 168))
        sheet.arrow((139, y + 136), (139, y + 78))
        sheet.text(146, y + 112, "in rings: 1 %, 10 %, all", size=13, ink=SOFT)
    sheet.text(506, 626, "No server of edgeroute's own is on any path.", size=13, ink=SOFT, end=True)
    return sheet
