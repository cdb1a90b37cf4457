"""The demo's report as one HTML file: nothing is fetched, light and dark as the reader has it."""

from __future__ import annotations

from html import escape

from edgeroute.cli.demo.curve import svg
from edgeroute.cli.demo.report import HEAD, Report, gained, notes, rows

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1b1f; --faint: #d9d9e0; }
@media (prefers-color-scheme: dark) { :root { --back: #16171a; --ink: #e6e6ea; --faint: #3a3b42; } }
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; }
figure { margin: 1.5rem 0; }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child { text-align: left; }
tbody tr:last-child > * { font-weight: 600; }
th { font-weight: 400; }
li { font-size: .9rem; }
"""


def page(report: Report) -> str:
    """The whole file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    body = "\n".join(
        f'<tr><th scope="row">{way}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for way, *cells in rows(report)
    )
    listed = "\n".join(f"<li>{escape(note)}</li>" for note in notes(report))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeroute demo</title>
<style>{STYLE}</style>
<h1>edgeroute demo: {report.n:,} images on the edge, in the cloud, and routed</h1>
<p>{escape(gained(report))}</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<figure role="img" aria-label="Accuracy over the share of images sent to the cloud">{svg(report)}</figure>
<ul>
{listed}
</ul>
</html>
"""
